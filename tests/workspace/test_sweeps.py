"""Claims about sweeps: every combination once, one seed, and a sheet of where they ended."""

import pytest
from PIL import Image

from studio.config import TrainConfig, build
from studio.errors import NotFound, SettingsError
from studio.events import Sample
from studio.jobs.folder import EventWriter, JobFolder
from studio.workspace import Workspace
from studio.workspace.sweeps import _draw, spread


def config(**values) -> TrainConfig:
    return build(TrainConfig, {"images": "x", "name": "fox", **values})


def test_every_combination_is_a_run_of_its_own_name_with_one_seed():
    found = spread(config(), ["learning_rate=1e-4,2e-4", "rank=8,16"])
    assert [(one.learning_rate, one.rank) for one in found] == [(1e-4, 8), (1e-4, 16), (2e-4, 8), (2e-4, 16)]
    assert [one.name for one in found][:2] == ["fox-learning_rate-1e-4-rank-8", "fox-learning_rate-1e-4-rank-16"]
    assert len({one.seed for one in found}) == 1 and found[0].seed >= 0
    assert spread(config(seed=5), ["rank=8"])[0].seed == 5


def test_values_that_hold_commas_are_parted_by_semicolons():
    found = spread(config(), ["optimizer_options=betas=0.9,0.99;betas=0.9,0.999"])
    assert [one.optimizer_options for one in found] == [("betas=0.9,0.99",), ("betas=0.9,0.999",)]


def test_settings_that_nobody_named_stay_open_for_the_base():
    assert spread(config(), ["rank=8"])[0].learning_rate is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("rnak=8", "'rnak' is no setting to sweep over"),
        ("name=a,b", "'name' is no setting to sweep over"),
        ("rank=8,8", "name different values"),
        ("rank", "name different values"),
        ("rank=8,many", "setting rank 'many'"),
        ("rank=" + ",".join(map(str, range(1, 66))), "has 65 runs"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_whole(row, message):
    with pytest.raises(SettingsError, match=message):
        spread(config(), [row])
    with pytest.raises(SettingsError, match="output names one file"):
        spread(config(output="a.safetensors"), ["rank=8"])


def test_the_sheet_holds_every_picture_unchanged(tmp_path):
    paths = []
    for i, colour in enumerate(["red", "lime", "blue"]):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", (40, 30), colour).save(paths[-1])
    _draw([("one", paths[:2]), ("a name that is wider than its only picture", paths[2:])], tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    colours = {colour: n for n, colour in sheet.getcolors(100_000)}
    assert [colours[colour] for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))] == [1200] * 3


def test_a_sweep_is_known_by_its_runs_and_drawn_as_far_as_they_are(tmp_path):
    with Workspace.open(tmp_path / "data") as studio:
        first, second = studio.sweeps.submit(config(images="blueprint"), ["rank=2,4"])
        assert (first.settings["rank"], second.settings["rank"]) == (2, 4) and first.settings["seed"] == second.settings["seed"]
        [told] = studio.sweeps.begun()
        assert (told.id, told.name, told.rows, told.jobs) == (first.id, "fox", ("rank=2,4",), (first.id, second.id))
        with pytest.raises(NotFound, match="has drawn samples yet"):
            studio.sweeps.picture(told.id)
        with pytest.raises(NotFound, match="no sweep"):
            studio.sweeps.picture(second.id)
        folder = JobFolder.of(studio.layout.jobs, second.id)
        Image.new("RGB", (40, 30), "lime").save(folder.path / "a.png")
        writer = EventWriter(folder.events_file)
        writer.append(Sample(step=5, prompt="x", path="a.png", seed=1))
        writer.close()
        studio.jobs.cancel(first.id)
        studio.jobs.remove(first.id)
        sheet = Image.open(studio.sweeps.picture(told.id))
        assert {colour: n for n, colour in sheet.getcolors(100_000)}[(0, 255, 0)] == 1200
