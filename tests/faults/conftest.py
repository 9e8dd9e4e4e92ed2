"""A studio whose workers are forked from a warm process, so that one can be killed every second."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from studio.config import TrainConfig, build
from studio.events import Started, Step
from studio.jobs.devices import Device
from studio.jobs.folder import JobFolder
from studio.jobs.processes import WorkerFolder, end
from studio.jobs.queue import Dispatcher
from studio.workspace import Workspace
from tests.faults import invariants
from tests.forked import Forks, Worker
from tests.jobs.conftest import SHORT, draw_pictures

RUN = {**SHORT, "batch_size": 2, "steps": 6, "save_every": 2, "flip": True, "gradient_accumulation": 2}

CANCEL_SECONDS = 30.0


@dataclass
class Ground:
    """One data folder under test, its studio and dispatcher, and where the next worker dies."""

    data: Path
    forks: Forks
    kill_at: str = ""
    workers: list[Worker] = field(default_factory=list)

    def open(self) -> None:
        """A studio as after a restart of everything that keeps books."""
        began = time.monotonic()
        self.studio = Workspace.open(self.data)
        self.queue = Dispatcher(self.studio._db, self.studio.layout, lambda: [Device("cpu", "processor")], cancel_seconds=CANCEL_SECONDS)
        assert self.queue.try_lead()
        assert time.monotonic() - began < 30, "I6"  # ten seconds, on a machine three times as slow as those it is promised for

    def close(self) -> None:
        self.queue._lock.release()
        self.studio._db.close()

    def reopen(self) -> None:
        self.close()
        self.open()

    def start_worker(self, home: WorkerFolder, data: Path) -> Worker:
        self.workers.append(self.forks.worker(home, data, self.kill_at))
        return self.workers[-1]

    def train(self, **values: object) -> str:
        return self.studio.jobs.train(build(TrainConfig, {**RUN, **values})).id

    def until(self, what: Callable[[], object], seconds: float = 300.0) -> Any:
        """Dispatch until that is so."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            self.queue.tick()
            if found := what():
                return found
            time.sleep(0.01)
        raise AssertionError("waited in vain")

    def until_ended(self, id: str) -> str:
        return self.until(lambda: (state := self.state(id)) not in ("queued", "running") and state)

    def until_step(self, id: str, step: int) -> None:
        self.until(lambda: any(isinstance(event, Step) and event.step >= step for event in self.folder(id).read()[0]))

    def state(self, id: str) -> str:
        return self.studio.jobs.show(id).state

    def folder(self, id: str) -> JobFolder:
        return JobFolder(self.studio.layout.jobs / id)

    def pid(self, id: str) -> int:
        claim = self.folder(id).claim()
        assert claim
        return claim.pid

    def go_on(self, id: str) -> str:
        """Resume a run that was interrupted, or start it again where nothing was saved; the id of the run that goes on."""
        if self.folder(id).checkpoints():
            return self.studio.jobs.resume(id).id
        return self.studio.jobs.retry(id).id

    def recover(self, id: str) -> str:
        """Restart, check, go on to the end without faults, check; the id of the run that finished."""
        self.kill_at = ""
        self.reopen()
        state = self.until_ended(id)
        self.reopen()
        invariants.check(self.studio)
        before = self.folder(id).checkpoints()
        if state != "finished":
            assert state == "interrupted", state
            id = self.go_on(id)
            assert self.until_ended(id) == "finished", self.studio.jobs.show(id).message
            started = [event for event in self.folder(id).read()[0] if isinstance(event, Started)][-1]
            assert started.step == (before[-1].step if before else 0), "I2"
        self.reopen()
        invariants.check(self.studio)
        assert len([row for row in self.studio.library.list() if row.run == id]) == 1, "one adapter of one run"
        return id

    def end_workers(self) -> None:
        state = WorkerFolder(self.studio.layout.workers, "cpu").state()
        if state is not None:
            end(state.pid, state.started, seconds=1.0)


@pytest.fixture
def ground(tmp_path_factory: pytest.TempPathFactory, forks: Forks, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    root = tmp_path_factory.mktemp("ground")
    monkeypatch.setenv("STUDIO_WORKER_IDLE", "60")
    found = Ground(root / "data", forks)
    monkeypatch.setattr(WorkerFolder, "start", lambda home, data: found.start_worker(home, data))
    found.open()
    found.studio.sets.import_folder("Circles", draw_pictures(root / "circles", 3))
    yield found
    found.end_workers()
    found.close()


@pytest.fixture(scope="package")
def unbroken(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> dict[str, bytes]:
    """What the run of these tests leaves behind when nothing happens to it."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("unbroken")
        found = Ground(root / "data", forks)
        patch.setattr(WorkerFolder, "start", lambda home, data: found.start_worker(home, data))
        found.open()
        found.studio.sets.import_folder("Circles", draw_pictures(root / "circles", 3))
        id = found.train()
        assert found.until_ended(id) == "finished"
        whole = invariants.result(found.studio, id)
        found.end_workers()
        found.close()
        return whole


def kill(pid: int) -> None:
    import signal

    os.kill(pid, signal.SIGKILL)
