"""A training by several processes has so many devices to itself, and gets them in time."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.config import TrainConfig, build
from studio.events import Finished
from studio.jobs import queue as queues
from studio.jobs.devices import Device, listed
from studio.jobs.folder import JobFolder
from studio.jobs.queue import Dispatcher
from studio.workspace import Workspace
from tests.forked import Forks
from tests.jobs.conftest import SHORT, draw_pictures
from tests.jobs.test_queue import Pretend

CARDS = ["cuda:0", "cuda:1", "cuda:2"]


@pytest.fixture
def studio(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    monkeypatch.setenv("STUDIO_DATABASE_URL", database_url)
    workspace = Workspace.open(tmp_path / "data")
    workspace.sets.import_folder("Circles", draw_pictures(tmp_path / "circles"))
    yield workspace
    workspace._db.close()


@pytest.fixture
def queue(studio: Workspace) -> Iterator[Dispatcher]:
    dispatcher = Dispatcher(studio._db, studio.layout, lambda: [Device(name, "card") for name in CARDS])
    assert dispatcher.try_lead()
    yield dispatcher
    dispatcher._lock.release()


def job(studio: Workspace, name: str, processes: int = 1) -> str:
    return studio.jobs.train(build(TrainConfig, {"images": "Circles", "name": name, "batch_size": 8, "processes": processes})).id


def given(studio: Workspace) -> dict[str, list[str]]:
    """Devices of what runs, by name."""
    return {row.name: listed(row.device) for row in studio.jobs.queue() if row.state == "running"}


def test_no_device_is_given_twice_and_the_worker_is_told_which_are_its(studio: Workspace, queue: Dispatcher) -> None:
    workers = {name: Pretend(studio.layout, name) for name in CARDS}
    wide, narrow = job(studio, "wide", processes=2), job(studio, "narrow")
    job(studio, "later")
    queue.tick()
    assert given(studio) == {"wide": ["cuda:0", "cuda:1"], "narrow": ["cuda:2"]}
    assert (workers["cuda:0"].home.inbox / wide).read_text() == "cuda:0,cuda:1"
    assert workers["cuda:1"].home.waiting() == [] and workers["cuda:2"].home.waiting() == [narrow]
    assert workers["cuda:1"].home.stop.exists(), "an idle worker gives up the memory of a card that another one is to use"
    assert not workers["cuda:0"].home.stop.exists()
    workers["cuda:0"].say(workers["cuda:0"].take(), Finished(step=1))
    queue.tick()
    queue.tick()
    assert given(studio) == {"narrow": ["cuda:2"], "later": ["cuda:0"]}


def test_smaller_jobs_pass_one_that_waits_for_devices_but_not_for_ever(studio: Workspace, queue: Dispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = {name: Pretend(studio.layout, name) for name in CARDS}
    for name in ("a", "b"):
        job(studio, name)
    queue.tick()
    job(studio, "wide", processes=3)
    job(studio, "c")
    queue.tick()
    assert given(studio) == {"a": ["cuda:0"], "b": ["cuda:1"], "c": ["cuda:2"]}, "c goes before"
    assert studio.jobs.show("wide").message == "waiting for 3 devices"

    job(studio, "d")
    monkeypatch.setattr(queues, "PASSING_SECONDS", 0.0)
    for name in CARDS:
        workers[name].say(workers[name].take(), Finished(step=1))
        queue.tick()
        queue.tick()
        assert "d" not in given(studio)
    assert given(studio) == {"wide": CARDS}, "what fell free was kept for it"


def test_more_processes_than_cards_fail_with_the_way_out_and_stay_failed(studio: Workspace, queue: Dispatcher) -> None:
    Pretend(studio.layout, CARDS[0])
    id = job(studio, "too-wide", processes=4)
    later = job(studio, "later")
    queue.tick()
    shown = studio.jobs.show(id)
    assert (shown.state, shown.message) == ("failed", "processes 4: there are 3 GPUs for them") and "lower processes" in shown.remedy
    assert [event.kind for event in studio.jobs.events(id).events] == ["failed"]
    assert studio.jobs.show(later).state == "running"


def test_another_node_may_have_the_cards_that_this_one_lacks(studio: Workspace) -> None:
    small = Dispatcher(studio._db, studio.layout, lambda: [Device("cuda:0", "card")], node="small")
    large = Dispatcher(studio._db, studio.layout, lambda: [Device(name, "card") for name in CARDS], node="large")
    Pretend(studio.layout, CARDS[0], node="large")
    id = job(studio, "wide", processes=2)
    assert small.try_lead() and large.try_lead()
    small.tick()
    assert studio.jobs.show(id).state == "queued"
    large.tick()
    assert (studio.jobs.show(id).state, studio.jobs.show(id).node) == ("running", "large")
    small._lock.release()
    large._lock.release()


def test_two_processes_train_through_the_queue_on_the_devices_of_the_row(tmp_path: Path, forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    """They begin from nothing, unlike those of test_ranks.py; the worker, which starts them, is forked."""
    monkeypatch.setenv("STUDIO_DEVICE", "cpu:0,cpu:1")
    with forks.as_workers(), Workspace.open(tmp_path / "data") as studio:
        studio.sets.import_folder("Circles", draw_pictures(tmp_path / "circles"))
        id = studio.jobs.train(build(TrainConfig, {**SHORT, "batch_size": 2, "steps": 2, "processes": 2, "name": "pair"})).id
        assert list(studio.jobs.follow(id))[-1].kind == "finished", studio.jobs.show(id).message
        claim = JobFolder(studio.layout.jobs / id).claim()
        assert claim is not None and studio.jobs.show(id).device == claim.device == "cpu:0,cpu:1" and claim.pid != os.getpid()
