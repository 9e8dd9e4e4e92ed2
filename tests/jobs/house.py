"""A studio whose worker is called in the process of the test, so that a whole job costs milliseconds."""

from dataclasses import dataclass
from pathlib import Path

from studio.errors import StudioError
from studio.jobs import worker
from studio.jobs.devices import Device
from studio.jobs.processes import WorkerFolder
from studio.jobs.queue import Dispatcher
from studio.workspace import Workspace


@dataclass
class House:
    """One data folder, its studio, dispatcher and worker."""

    data: Path

    def open(self) -> None:
        self.studio = Workspace.open(self.data)
        self.queue = Dispatcher(self.studio._db, self.studio.layout, lambda: [Device("cpu", "processor")])
        self.worker = worker.Worker(self.studio.layout, "cpu")
        self.worker._note()

    def close(self) -> None:
        self.queue._lock.release()
        self.studio._db.close()

    def reopen(self) -> None:
        """As after a restart, whatever is wrong set right."""
        self.close()
        self.open()
        assert self.queue.try_lead()

    def round(self) -> str:
        """The dispatcher and the worker once each, as their loops call them; why the dispatcher could not, if so."""
        told = ""
        try:
            self.queue.tick()
        except StudioError as error:
            told = str(error)
        for id in WorkerFolder(self.studio.layout.workers, "cpu").waiting():
            self.worker._take([id])
        return told

    def until_idle(self) -> None:
        for _ in range(20):
            assert self.round() == ""
            if not self.studio.jobs.queue():
                return
        raise AssertionError([row.message for row in self.studio.jobs.queue()])
