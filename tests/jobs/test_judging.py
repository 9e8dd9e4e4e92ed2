"""Held-out pictures, forks and damaged checkpoints through the queue and a real worker."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from studio.config import TrainConfig, build
from studio.errors import InputError
from studio.events import Checkpoint, Exported, Finished, Started, Step, Validation, Warned
from studio.metadata import read_header
from studio.training import checkpoint
from studio.workspace import Workspace
from tests.jobs.conftest import SHORT, draw_pictures

RATE = 0.3
HELD = {**SHORT, "images": "Judges", "validation_fraction": 0.5, "validation_every": 1}


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of four steps at a rate so high that the last is not the best."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIO_DEVICE", "cpu")
        with Workspace.open(data) as studio:
            studio.sets.import_folder("Judges", draw_pictures(tmp_path_factory.mktemp("judges"), 4))
            job = studio.jobs.train(build(TrainConfig, {**HELD, "name": "judged", "steps": 4, "learning_rate": RATE, "save_every": 1, "seed": 3}))
            assert list(studio.jobs.follow(job.id))[-1].kind == "finished"
            return job.id


def looks(studio: Workspace, id: str) -> Mapping[int, Validation]:
    return {look.step: look for look in studio.jobs.validations(id)}


def test_the_best_checkpoint_is_marked_exported_and_told(studio: Workspace, trained: str, tmp_path: Path) -> None:
    found, result = looks(studio, trained), studio.jobs.show(trained).result
    assert sorted(found) == [0, 1, 2, 3, 4]
    best = min((step for step in found if step), key=lambda step: found[step].loss)
    assert best != 4, "the demonstration is none if the last is the best"
    assert result["best_step"] == best and result["checkpoint"] == f"checkpoints/{checkpoint.name_of(best)}"
    assert [row.step for row in studio.jobs.checkpoints(trained) if row.best] == [best]
    exported = next(event for event in studio.jobs.events(trained).events if isinstance(event, Exported))
    assert exported.report["checkpoint"] == {"step": best, "best": True}
    row = studio.library.show("judged")
    assert row.facts["report"]["checkpoint"] == {"step": best, "best": True}
    assert read_header(studio.library.path(row.id)).metadata["ss_steps"] == str(best)

    target = tmp_path / "again.safetensors"
    events = list(studio.jobs.follow(studio.jobs.export(trained, target).id))
    assert read_header(target).metadata["ss_steps"] == str(best)
    assert any(getattr(event, "phase", "") == f"writing the LoRA file of step {best}" for event in events)


def test_evaluating_finds_what_training_found(studio: Workspace, trained: str) -> None:
    """Every checkpoint, loaded anew in another process, gives the losses that the run told while it trained."""
    job = studio.jobs.evaluate(trained)
    events = list(studio.jobs.follow(job.id))
    told, result = looks(studio, trained), events[-1].result if isinstance(events[-1], Finished) else {}
    assert [row["step"] for row in result["checkpoints"]] == [1, 2, 3, 4]
    for row in result["checkpoints"]:
        look = told[row["step"]]
        assert row["loss"] == pytest.approx(look.loss, rel=1e-4) and row["interval"] == pytest.approx([look.low, look.high], rel=1e-4)
    assert result["best_step"] == studio.jobs.show(trained).result["best_step"] and studio.jobs.show(job.id).kind == "evaluate"
    assert [row["as_good"] for row in result["checkpoints"] if row["step"] == result["best_step"]] == [True]


def test_another_set_measures_without_the_pictures_that_were_trained_on(studio: Workspace, trained: str, tmp_path: Path) -> None:
    judging = studio.jobs.evaluate(trained).id
    with pytest.raises(InputError, match="no checkpoints to evaluate"):
        studio.jobs.evaluate(judging)
    studio.jobs.cancel(judging)
    other = studio.sets.import_folder("Others", draw_pictures(tmp_path / "others", 5)).set
    assert other is not None
    events = list(studio.jobs.follow(studio.jobs.evaluate(trained, other.id).id))
    warned = [event.message for event in events if isinstance(event, Warned)]
    trained_on = next(event for event in studio.jobs.events(trained).events if isinstance(event, Started)).facts["images"]
    assert warned == [f"{trained_on} pictures are left out, for the run was trained on them"]
    assert isinstance(events[-1], Finished) and events[-1].result["held_out"] == 5 - trained_on


def test_a_run_that_held_nothing_out_wants_a_set(studio: Workspace) -> None:
    job = studio.jobs.train(build(TrainConfig, {**SHORT, "steps": 1, "name": "greedy"}))
    list(studio.jobs.follow(job.id))
    with pytest.raises(InputError, match="trained on all its pictures; name an image set"):
        studio.jobs.evaluate(job.id)


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("gone", [False, True], ids=["spoiled", "gone"])
def test_a_damaged_last_checkpoint_is_passed_over_and_told(studio: Workspace, gone: bool) -> None:
    job = studio.jobs.train(build(TrainConfig, {**SHORT, "steps": 4, "save_every": 1, "name": f"damaged-{gone}"}))
    list(studio.jobs.follow(job.id))
    last = studio.jobs.file(job.id, studio.jobs.checkpoints(job.id)[-1].path)
    if gone:
        last.unlink()
    else:
        spoil(last)
    studio.jobs.extend(job.id, 1)
    events = list(studio.jobs.follow(job.id))
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert any("step-000004: " in message and message.endswith("the run goes on from step 3 instead") for message in warned)
    assert [event.step for event in events if isinstance(event, Step)] == [4, 5]
    assert studio.jobs.show(job.id).result["warnings"] == warned


def test_a_fork_is_a_run_of_its_own_that_says_what_differs(studio: Workspace, trained: str) -> None:
    changes: dict[str, Any] = {"learning_rate": 0.001, "steps": 2, "save_every": 0}
    job = studio.jobs.fork(f"{trained}@2", changes)
    events = list(studio.jobs.follow(job.id))
    assert job.id != trained and job.name == "judged-fork"
    said = [event.message for event in events if isinstance(event, Warned) and "of another" in event.message]
    assert said == ["a new run from the weights of step 2 of another; what differs from it: learning_rate 0.3 -> 0.001"]
    assert [event.step for event in events if isinstance(event, Step)] == [1, 2]
    first = next(event for event in events if isinstance(event, Validation))
    assert first.loss == pytest.approx(looks(studio, trained)[2].loss, rel=1e-4)  # it stands where the other stood
    assert [event.step for event in events if isinstance(event, Checkpoint)][-1] == 2


def test_a_run_offers_a_smaller_file_beside_its_own(studio: Workspace, trained: str) -> None:
    """Both join the library; the smaller one says where it comes from, and the run's own file stays what it would be."""
    job = studio.jobs.train(build(TrainConfig, {**HELD, "name": "wide", "steps": 3, "rank": 8, "seed": 3, "rank_probe": True}))
    events = list(studio.jobs.follow(job.id))
    assert events[-1].kind == "finished"
    report = studio.jobs.show(job.id).result["probe"]
    assert report["after"] and report["after"]["parameters"] < report["before"]["parameters"] and report["after"]["bytes"] < report["bytes_before"]
    names = {row.name: row for row in studio.library.list() if row.run == job.id}
    assert sorted(names) == ["wide", "wide-trimmed"]
    assert studio.library.path("wide-trimmed").stat().st_size == report["after"]["bytes"]
    words = read_header(studio.library.path("wide-trimmed")).metadata
    assert "Trimmed by the rank probe" in words["modelspec.description"] and words["ss_seed"] == "3" and words["ss_network_dim"] == "Dynamic"
    assert studio.library.show("wide-trimmed").facts["report"]["passed"] and "probe" not in studio.jobs.report(job.id)


def test_any_lora_is_probed_by_pictures_that_are_named(studio: Workspace, trained: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nobody knows what judged was trained on; name an image set"):
        studio.tools.run("probe", {"source": studio.library.show("judged").id, "base": "demo-sdxl"})
    target = tmp_path / "small.safetensors"
    job = studio.tools.run("probe", {"source": f"{trained}@2", "tolerance": 0.9, "output": str(target)})
    events = list(studio.jobs.follow(job.id))
    assert isinstance(events[-1], Finished), events[-1]
    report = events[-1].result["probe"]
    assert report["held_out"] == len(next(iter(looks(studio, trained).values())).by_picture)
    assert report["loss"] == pytest.approx(looks(studio, trained)[2].loss, rel=1e-4)
    assert target.is_file() == (report["after"] is not None)
