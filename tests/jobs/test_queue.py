"""Handing out and taking in, with this test in the worker's place: it speaks through folders only, as workers do."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.events import CancelledEvent, Finished, Loading, Started, Step
from studio.jobs.devices import Device, devices
from studio.jobs.folder import Claim, EventWriter, JobFolder
from studio.jobs.processes import WorkerFolder, WorkerState, own_start, start_of
from studio.jobs.queue import STARTS, Dispatcher
from studio.library.database import Database
from studio.library.layout import Layout
from studio.library.models import JobRow
from studio.workspace import Workspace
from tests.jobs.conftest import draw_pictures


class Pretend:
    """Takes jobs from the inbox of one device as a worker would. Where none stands before the first tick, the queue starts a real one."""

    def __init__(self, layout: Layout, device: str = "cpu", node: str = "") -> None:
        self.layout = layout
        self.home = WorkerFolder(layout.workers, device, node).create()
        self.home.write_state(WorkerState(pid=os.getpid(), started=own_start(), device=device, beat=time.time()))

    def take(self, pid: int = 0, started: float = 0.0) -> JobFolder:
        [id] = self.home.waiting()
        (self.home.inbox / id).unlink()
        folder = JobFolder.of(self.layout.jobs, id)
        claim = Claim(pid=pid or os.getpid(), started=started or own_start(), segment=folder.manifest().segment.number, device=self.home.device)
        folder.write_claim(claim)
        return folder

    def say(self, folder: JobFolder, *events: object) -> None:
        writer = EventWriter(folder.events_file)
        for event in events:
            writer.append(event)  # type: ignore[arg-type]
        writer.close()


@pytest.fixture
def studio(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """On a database of each kind."""
    monkeypatch.setenv("STUDIO_DATABASE_URL", database_url)
    workspace = Workspace.open(tmp_path / "data")
    workspace.sets.import_folder("Circles", draw_pictures(tmp_path / "circles"))
    yield workspace
    workspace._db.close()


@pytest.fixture
def queue(studio: Workspace) -> Iterator[Dispatcher]:
    dispatcher = Dispatcher(studio._db, studio.layout, lambda: [Device("cpu", "processor")], cancel_seconds=0.0)
    assert dispatcher.try_lead()
    yield dispatcher
    dispatcher._lock.release()


def job(studio: Workspace, name: str) -> str:
    from studio.config import TrainConfig

    return studio.jobs.train(TrainConfig(images="Circles", name=name)).id


def test_jobs_run_one_after_another_in_order_and_can_be_moved(studio: Workspace, queue: Dispatcher) -> None:
    worker = Pretend(studio.layout)
    ids = [job(studio, name) for name in ("a", "b", "c", "d")]
    studio.jobs.move("d", 0)
    ran = []
    for _ in ids:
        queue.tick()
        folder = worker.take()
        queue.tick()
        assert worker.home.waiting() == []  # one at a time
        ran.append(studio.jobs.show(folder.id).name)
        worker.say(folder, Started(total=2), Step(step=2, total=2), Finished(step=2))
        queue.tick()
        assert studio.jobs.show(folder.id).state == "finished"
    assert ran == ["d", "a", "b", "c"]


def test_two_processes_never_both_hand_out(studio: Workspace, queue: Dispatcher) -> None:
    second = Dispatcher(studio._db, studio.layout, lambda: [], cancel_seconds=0.0)
    assert not second.try_lead()
    queue.release()
    assert second.try_lead() and not queue.try_lead()
    second.release()


def test_events_are_taken_in_once_however_often_it_looks(studio: Workspace, queue: Dispatcher) -> None:
    worker = Pretend(studio.layout)
    id = job(studio, "a")
    queue.tick()
    folder = worker.take()
    worker.say(folder, Loading(phase="reading", done=1, total=4))
    queue.tick()
    assert studio.jobs.show(id).message == "reading 1/4"
    with open(folder.events_file, "ab") as file:
        file.write(b'{"kind":"step","step":1,"to')  # cut in the middle of a line
    queue.tick()
    assert studio.jobs.show(id).step == 0
    with open(folder.events_file, "ab") as file:
        file.write(b'tal":9,"seconds":2.0}\n')
    queue.tick()
    queue.tick()
    shown = studio.jobs.show(id)
    assert (shown.step, shown.total, shown.eta) == (1, 9, 16.0)


def test_a_dead_worker_makes_its_job_interrupted_and_the_queue_goes_on(studio: Workspace, queue: Dispatcher) -> None:
    worker = Pretend(studio.layout)
    id, later = job(studio, "a"), job(studio, "b")
    queue.tick()
    worker.take(pid=os.getpid(), started=own_start() - 60)  # this number, but another process: not the one that claimed
    queue.tick()
    shown = studio.jobs.show(id)
    assert shown.state == "interrupted" and "ended unexpectedly" in shown.message and shown.remedy == "retry starts it again"
    queue.tick()
    assert worker.home.waiting() == [later]


def test_last_words_of_a_dead_worker_count(studio: Workspace, queue: Dispatcher) -> None:
    worker = Pretend(studio.layout)
    id = job(studio, "a")
    queue.tick()
    worker.say(worker.take(started=own_start() - 60), Finished(step=7))
    queue.tick()
    assert studio.jobs.show(id).state == "finished"


def test_a_cancel_before_the_claim_takes_the_job_back(studio: Workspace, queue: Dispatcher) -> None:
    worker = Pretend(studio.layout)
    id = job(studio, "a")
    queue.tick()
    assert studio.jobs.cancel(id).cancelling
    queue.tick()
    queue.tick()
    assert studio.jobs.show(id).state == "cancelled" and worker.home.waiting() == []
    assert [event.kind for event in studio.jobs.events(id).events] == ["cancelled"]


def test_finishing_and_cancelling_at_once_end_in_one_state(studio: Workspace, queue: Dispatcher) -> None:
    worker = Pretend(studio.layout)
    id = job(studio, "a")
    queue.tick()
    folder = worker.take()
    worker.say(folder, Finished(step=3))
    studio.jobs.cancel(id)
    queue.tick()
    assert studio.jobs.show(id).state == "finished"
    assert studio.jobs.cancel(id).state == "finished"


def test_a_worker_that_never_starts_fails_its_job_with_the_way_out(studio: Workspace, queue: Dispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    def broken(self: WorkerFolder, data: Path) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(1)"])
        process.wait()
        return process

    monkeypatch.setattr(WorkerFolder, "start", broken)
    id = job(studio, "a")
    for _ in range(STARTS + 2):
        queue.tick()
    shown = studio.jobs.show(id)
    assert shown.state == "failed" and "does not start" in shown.message and "log.txt" in shown.remedy


def test_a_folder_without_a_row_is_queued_and_a_row_without_a_folder_dropped(studio: Workspace, queue: Dispatcher) -> None:
    import shutil

    orphan, ghost = job(studio, "orphan"), job(studio, "ghost")
    manifest = JobFolder.of(studio.layout.jobs, orphan).manifest()
    with studio._db.write() as session:
        session.delete(session.get_one(JobRow, orphan))
    shutil.rmtree(studio.layout.jobs / ghost)
    queue._lock.release()
    assert queue.try_lead()
    assert [(row.id, row.state) for row in studio.jobs.list()] == [(orphan, "queued")]
    assert studio.jobs.show(orphan).settings == manifest.settings


def test_what_is_written_after_a_cut_line_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind":"step","step":1,"total":2}\n{"kind":"st')
    writer = EventWriter(path)
    writer.append(CancelledEvent(step=1))
    writer.close()
    events, end = JobFolder(tmp_path).read()
    assert [event.kind for event in events] == ["step", "cancelled"] and end == path.stat().st_size


def test_opening_a_newer_database_twice_at_once_migrates_once(tmp_path: Path) -> None:
    import threading

    layout = Layout(tmp_path / "data").create()
    opened: list[Database] = []
    threads = [threading.Thread(target=lambda: opened.append(Database.open(f"sqlite:///{layout.database}", layout.tmp / "lock"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4


def test_the_device_can_be_named_and_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIO_DEVICE", "cuda:1,cuda:0")
    assert [device.name for device in devices()] == ["cuda:1", "cuda:0"]
    monkeypatch.setenv("STUDIO_DEVICE", "gpu")
    with pytest.raises(Exception, match="is no device"):
        devices()


def test_a_job_that_does_not_obey_a_cancel_loses_its_worker(studio: Workspace, queue: Dispatcher) -> None:
    import subprocess
    import sys

    import psutil

    worker = Pretend(studio.layout)
    id = job(studio, "deaf")
    queue.tick()
    process = subprocess.Popen([sys.executable, "-S", "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"])
    folder = worker.take(process.pid, start_of(process.pid))
    worker.say(folder, Started(total=9))
    studio.jobs.cancel(id)
    queue.tick()
    assert not psutil.pid_exists(process.pid)
    queue.tick()
    queue.tick()
    assert studio.jobs.show(id).state == "cancelled"


def drawing(studio: Workspace, **values: object) -> str:
    from studio.config import GenerateConfig, build

    return studio.jobs.generate(build(GenerateConfig, {"base": "demo-sdxl", "prompt": "a circle", "batch": 4, "steps": 3, **values})).id


def test_drawings_that_one_pass_can_serve_are_handed_to_a_worker_together(studio: Workspace, queue: Dispatcher) -> None:
    worker = Pretend(studio.layout)
    first = drawing(studio, seed=1)
    longer = drawing(studio, seed=2, steps=4)
    alone = drawing(studio, seed=3, batch=1)
    second, third = drawing(studio, seed=4, prompt="a square", count=2), drawing(studio, seed=5, count=2)
    fourth = drawing(studio, seed=6)
    queue.tick()
    assert set(worker.home.waiting()) == {first, second, fourth}, "no more than a batch, and whoever fits"
    assert {studio.jobs.show(id).state for id in (longer, alone, third)} == {"queued"}
    assert studio.jobs.cancel(second).id == second
    queue.tick()
    assert studio.jobs.show(second).state in ("cancelled", "running") and set(worker.home.waiting()) == {first, fourth}


def test_a_deaf_worker_is_ended_only_when_every_job_of_its_pass_is_cancelled(studio: Workspace, queue: Dispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, ended = Pretend(studio.layout), []
    ids = [drawing(studio, seed=i) for i in range(2)]
    queue.tick()
    for id in ids:
        (worker.home.inbox / id).unlink()
        folder = JobFolder.of(studio.layout.jobs, id)
        folder.write_claim(Claim(pid=os.getpid(), started=own_start(), segment=1, device="cpu"))
        worker.say(folder, Started(total=9))
    monkeypatch.setattr(queue.backend, "end", lambda home, claim: ended.append(claim))
    studio.jobs.cancel(ids[0])
    queue.tick()
    assert not ended
    studio.jobs.cancel(ids[1])
    queue.tick()
    assert ended
