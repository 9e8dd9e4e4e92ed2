"""Grids: every combination once, each cell the picture it would be alone."""

from pathlib import Path

import pytest
from PIL import Image

from studio.config import GenerateConfig, build
from studio.config.generating.grid import Axis
from studio.errors import Cancelled, SettingsError
from studio.events import Finished, Sheet, Started, Step
from studio.events import Image as Drawn
from studio.families.base import Components
from studio.generation import denoise, grids
from studio.generation.sampler import generate
from tests.generation.conftest import Asked, adapter


def config(c: Components | None = None, **values: object) -> GenerateConfig:
    small = {"width": 64, "height": 64, "steps": 2, "seed": 5, "prompt": "a cat face", "live_preview": 0}
    return build(GenerateConfig, {**({"base": c.base.name} if c else {}), **small, **values})


@pytest.mark.parametrize(
    ("text", "kind", "target", "values"),
    [
        ("steps=10,20", "steps", "", ("10", "20")),
        ("weight:my style=0, 0.5,1", "weight", "my style", ("0", "0.5", "1")),
        ("seed=1..4", "seed", "", ("1", "2", "3", "4")),
        ("guidance=1..2..0.25", "guidance", "", ("1", "1.25", "1.5", "1.75", "2")),
        ("prompt:cat=cat|dog, wet|a=b", "prompt", "cat", ("cat", "dog, wet", "a=b")),
        ("true-cfg=2", "true_cfg", "", ("2",)),
    ],
)
def test_an_axis_reads_as_it_is_written(text: str, kind: str, target: str, values: tuple[str, ...]) -> None:
    axis = Axis.parse(text)
    assert (axis.kind, axis.target, axis.values) == (kind, target, values)
    assert Axis.parse(str(axis)) == axis


def test_cells_are_every_combination_with_the_first_axis_fastest() -> None:
    rows = [{"name": "ink", "weight": 1}, {"name": "run@100", "weight": 0.5}]
    found = grids.cells(config(loras=rows, grid=["weight:ink=0,2", "prompt:cat=cat,dog", "checkpoint:run=100,200"]))
    assert [cell.place for cell in found] == [(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
    last = found[-1].config
    assert (last.prompt, [(row.name, row.weight) for row in last.loras], last.grid) == ("a dog face", [("ink", 2.0), ("run@200", 0.5)], ())
    assert grids.cells(config())[0].config == config()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"grid": ["colour=1,2"]}, "kind 'colour': is no axis of a grid; known are prompt"),
        ({"grid": ["steps"]}, "has no values"),
        ({"grid": ["steps=0,1"]}, "steps"),
        ({"grid": ["seed=1..401"]}, "more than 400"),
        ({"grid": ["seed=1..30", "steps=1..30"]}, "900 pictures are more than 400"),
        ({"grid": ["prompt:dog=a,b"]}, "'dog' is not in the prompt"),
        ({"grid": ["weight:ink=1"]}, "'ink' is not in the stack"),
        ({"grid": ["seed=1,2"], "count": 2}, "leave count at 1"),
        ({"grid": ["seed=4..1"]}, "must rise"),
    ],
)
def test_an_axis_that_does_not_fit_is_said_in_one_line(values: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        grids.cells(config(**values))
    assert "\n" not in str(caught.value)


def test_every_cell_is_the_picture_it_would_be_alone(c: Components, tmp_path: Path) -> None:
    ink = adapter(c, 1)
    whole = config(c, loras=[{"name": "ink", "weight": 1}], grid=["weight=0,1", "seed=5,6"])
    known = {"versions": {"ink": 42}}
    events = list(grids.generate(c, {"ink": ink}, whole, tmp_path, requests=Asked(), files={}, **known))
    drawn = [event for event in events if isinstance(event, Drawn)]
    assert [event.index for event in drawn] == [0, 1, 2, 3] and len({event.path for event in drawn}) == 4
    assert [event.step for event in events if isinstance(event, Step)] == list(range(1, 9))
    assert [event.total for event in events if isinstance(event, Started)] == [8]
    for event in drawn:
        one = build(GenerateConfig, event.settings)
        assert one.grid == ()
        alone = list(generate(c, [(ink, row) for row in one.loras], one, tmp_path / "alone" / str(event.index), requests=Asked(), names=["ink"], **known))
        path = next(found.path for found in alone if isinstance(found, Drawn))
        assert (tmp_path / event.path).read_bytes() == (tmp_path / "alone" / str(event.index) / path).read_bytes()
    sheet = next(event for event in events if isinstance(event, Sheet))
    finished = events[-1]
    assert isinstance(finished, Finished) and finished.result["grid"] == sheet.path
    with Image.open(tmp_path / sheet.path) as page:
        assert page.width > 2 * 64 and page.height > 2 * 64
        cell = Image.open(tmp_path / drawn[3].path).convert("RGB")
        corner = page.crop((page.width - 64 - 4, page.height - 64 - 4, page.width - 4, page.height - 4))
        assert corner.tobytes() == cell.tobytes(), "the last cell stands in the last corner"


def test_a_cancelled_grid_keeps_its_finished_cells(c: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoise, "LOOK_SECONDS", 1e9)
    with pytest.raises(Cancelled, match="1 of 3 pictures"):
        list(grids.generate(c, {}, config(c, grid=["seed=1,2,3"]), tmp_path, requests=Asked("cancel", 5), files={}))
    assert len(list(tmp_path.glob("cells/*/images/*"))) == 1 and not (tmp_path / "grid.png").exists()
