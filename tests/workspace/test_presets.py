"""Words and settings under a name: kept, put around a prompt once, and never of one picture."""

from pathlib import Path

import pytest

from studio.config import build
from studio.config.generating.presets import Preset
from studio.errors import InputError, NotFound, SettingsError
from studio.workspace import Workspace


@pytest.fixture
def studio(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "data")


def test_a_preset_is_kept_listed_replaced_and_forgotten(studio: Workspace) -> None:
    ink = build(Preset, {"name": "Ink drawing", "prompt": "ink", "settings": {"steps": 12, "sampler": "Euler a"}})
    studio.presets.save(build(Preset, {"name": "äther 2", "negative_prompt": "dull"}))
    assert studio.presets.save(ink) == studio.presets.show("ink DRAWING") == ink
    studio.presets.save(ink.model_copy(update={"prompt": "pen and ink"}))
    assert [(one.name, one.prompt) for one in studio.presets.list()] == [("Ink drawing", "pen and ink"), ("äther 2", "")]
    assert studio.presets.remove("Ink drawing").prompt == "pen and ink"
    with pytest.raises(NotFound, match="known are äther 2"):
        studio.presets.show("Ink drawing")
    broken = next(studio.layout.presets.glob("*.json"))
    broken.write_text("{")
    assert studio.presets.list() == []
    with pytest.raises(InputError, match="is not JSON"):
        studio.presets.show("äther 2")


def test_words_go_around_a_prompt_once_and_settings_under_what_is_given() -> None:
    around = build(Preset, {"name": "a", "prompt": "photo of {prompt}, 35 mm", "negative_prompt": "drawing", "settings": {"steps": 12, "guidance": 7}})
    once = around.applied({"prompt": "a cat", "steps": 30, "guidance": None})
    assert once == {"prompt": "photo of a cat, 35 mm", "negative_prompt": "drawing", "steps": 30, "guidance": 7}
    assert around.applied(once) == once
    assert build(Preset, {"name": "b", "prompt": "ink"}).applied({"prompt": ""})["prompt"] == "ink"
    assert build(Preset, {"name": "b", "prompt": "ink"}).applied({"prompt": "a cat"})["prompt"] == "a cat, ink"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "../x", "prompt": "a"}, "name"),
        ({"name": "x"}, "neither words nor settings"),
        ({"name": "x", "settings": {"seed": 3}}, "seed belongs to one picture"),
        ({"name": "x", "settings": {"stepz": 3}}, "did you mean 'steps'"),
        ({"name": "x", "settings": {"steps": 0}}, "steps"),
    ],
)
def test_what_is_no_preset_is_refused_in_one_line(values: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        build(Preset, values)
    assert "\n" not in str(caught.value)
