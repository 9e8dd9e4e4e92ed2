"""Pausing, ordering, copying and repeating jobs, on both databases; a test is in the worker's place."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.config import GenerateConfig, TrainConfig
from studio.errors import RunError, SettingsError, StudioError
from studio.events import Checkpoint, PausedEvent, Started, Step
from studio.jobs.devices import Device
from studio.jobs.folder import FolderRequests, JobFolder
from studio.jobs.queue import Dispatcher
from studio.workspace import Workspace
from tests.jobs.conftest import draw_pictures
from tests.jobs.test_queue import Pretend, job


@pytest.fixture
def desk(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    monkeypatch.setenv("STUDIO_DATABASE_URL", database_url)
    workspace = Workspace.open(tmp_path / "data")
    workspace.sets.import_folder("Circles", draw_pictures(tmp_path / "circles"))
    yield workspace
    workspace._db.close()


@pytest.fixture
def hand(desk: Workspace) -> Iterator[Dispatcher]:
    dispatcher = Dispatcher(desk._db, desk.layout, lambda: [Device("cpu", "processor")])
    assert dispatcher.try_lead()
    yield dispatcher
    dispatcher._lock.release()


def names(desk: Workspace) -> list[str]:
    return [row.name for row in desk.jobs.queue()]


def test_a_held_job_lets_others_by_and_comes_back_to_its_place(desk: Workspace, hand: Dispatcher) -> None:
    worker = Pretend(desk.layout)
    first = job(desk, "a")
    assert desk.jobs.pause(first).state == "paused" and desk.jobs.pause(first).state == "paused"
    with pytest.raises(RunError, match="used by the paused job"):
        desk.sets.remove("Circles")
    second = job(desk, "b")
    assert desk.jobs.resume(first).state == "queued" and names(desk) == ["a", "b"]
    desk.jobs.pause(first)
    hand.tick()
    assert worker.home.waiting() == [second]
    assert desk.jobs.cancel(first).state == "cancelled"
    assert [event.kind for event in desk.jobs.events(first).events] == ["cancelled"]


def test_a_running_training_pauses_and_goes_on_behind_what_it_let_by(desk: Workspace, hand: Dispatcher) -> None:
    worker = Pretend(desk.layout)
    id = job(desk, "long")
    hand.tick()
    folder = worker.take()
    picture = desk.jobs.generate(GenerateConfig(prompt="x", width=64, height=64))
    assert desk.jobs.pause(id).message == "pausing"
    assert FolderRequests(folder.path).pending() == {"pause", "leave"}
    (folder.path / "checkpoints").mkdir(exist_ok=True)
    (folder.path / "checkpoints" / "a").touch()
    saved = Checkpoint(step=3, path="checkpoints", adapter="checkpoints/a", sha256="0", bytes=1)
    worker.say(folder, Started(total=9), Step(step=3, total=9), saved, PausedEvent(step=3, kept="the checkpoint of step 3 is kept"))
    hand.tick()
    paused = desk.jobs.show(id)
    assert (paused.state, paused.step, paused.kept) == ("paused", 3, "the checkpoint of step 3 is kept")
    assert [event.kind for event in desk.jobs.follow(id)][-1] == "paused"
    assert worker.home.waiting() == [picture.id]
    with pytest.raises(RunError, match="only queued jobs and running trainings"):
        desk.jobs.pause(picture.id)
    again = desk.jobs.resume(id)
    assert (again.state, again.step, again.segment) == ("queued", 3, 2)
    assert folder.manifest().settings["start_from"] == str(folder.path / "checkpoints")
    assert FolderRequests(folder.path).pending() == set()
    assert JobFolder(folder.path).claim() is None


def test_priority_goes_before_place_and_a_moved_job_takes_that_of_its_neighbours(desk: Workspace) -> None:
    ids = {name: job(desk, name) for name in "abcd"}
    desk.jobs.prioritise(ids["c"], 5)
    assert names(desk) == ["c", "a", "b", "d"]
    assert desk.jobs.move(ids["d"], 0).priority == 5 and names(desk) == ["d", "c", "a", "b"]
    desk.jobs.move(ids["d"], 3)
    assert names(desk) == ["c", "a", "b", "d"]
    assert names(desk)[-1] == "d" and job(desk, "e") and names(desk)[-1] == "e"
    for i in range(60):  # places between the same two neighbours run out of digits, unless they are spread again
        desk.jobs.move(ids["ad"[i % 2]], 2)
        assert names(desk)[2] == "ad"[i % 2]
    desk.jobs.cancel(ids["a"])
    for verb in (lambda: desk.jobs.move(ids["a"], 0), lambda: desk.jobs.prioritise(ids["a"], 1)):
        with pytest.raises(RunError, match="only"):
            verb()


def test_a_duplicate_is_the_same_but_for_what_is_changed(desk: Workspace) -> None:
    first = desk.jobs.train(TrainConfig(images="Circles", name="a", rank=4, steps=7))
    copy = desk.jobs.duplicate(first.id, {"rank": 8, "name": "b"})
    assert (copy.name, copy.settings["rank"], copy.settings["seed"]) == ("b", 8, first.settings["seed"])
    assert desk.jobs.duplicate(first.id, {"epochs": 3}).settings["epochs"] == 3
    with pytest.raises(SettingsError, match="ranc"):
        desk.jobs.duplicate(first.id, {"ranc": 8})


def test_a_repeated_request_makes_one_job(desk: Workspace) -> None:
    config = TrainConfig(images="Circles", name="once")
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(desk.jobs.train(config, key="k1").id)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4 and len(set(made)) == 1
    assert [path.name for path in desk.layout.jobs.iterdir()] == made[:1]
    with pytest.raises(RunError, match="belongs to the train job 'once'"):
        desk.jobs.train(config.model_copy(update={"rank": 3}), key="k1")
    assert desk.jobs.train(config, key="k2").id != made[0]


def test_a_job_that_the_database_refuses_is_not_found_in_the_queue_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.library.database.BUSY_SECONDS", 0.3)
    with Workspace.open(tmp_path / "data") as studio:
        studio.sets.import_folder("Circles", draw_pictures(tmp_path / "circles"))
        kept = job(studio, "before")
        other = sqlite3.connect(studio.layout.database, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StudioError, match="locked by another program"):
            job(studio, "refused")
        other.execute("ROLLBACK")
        other.close()
        assert [path.name for path in studio.layout.jobs.iterdir()] == [kept]
        job(studio, "after")
        assert names(studio) == ["before", "after"]
