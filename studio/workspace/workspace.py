"""Everything a front end can do, in one place."""

import os
import shutil
from collections.abc import Container
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

import studio
from studio.jobs.devices import Device, devices
from studio.jobs.folder import JobFolder
from studio.jobs.processes import silent
from studio.jobs.queue import Dispatcher, Loop
from studio.library.database import Database
from studio.library.layout import Layout, data_root
from studio.library.models import JobRow
from studio.library.repair import set_aside
from studio.workspace.bases import Bases
from studio.workspace.captions import Captions
from studio.workspace.commandline import command_line
from studio.workspace.fitting import Fitting
from studio.workspace.gallery import Gallery
from studio.workspace.hub import Hub
from studio.workspace.inputs import Inputs
from studio.workspace.jobs import Jobs, record
from studio.workspace.library import Library
from studio.workspace.pairs import Pairs
from studio.workspace.presets import Presets
from studio.workspace.probes import Probes
from studio.workspace.records import DeviceRecord, Status
from studio.workspace.sets import Sets
from studio.workspace.sweeps import Sweeps
from studio.workspace.tools import Tools
from studio.workspace.watch import Watch


class Workspace:
    """One data folder and its use cases: `sets`, `jobs`, `library`, `tools`, `gallery`, `inputs`, `presets`,
    `bases`, `sweeps`, `pairs`, `fitting`.

    `start` runs the queue in the background: a studio does so at once, a command when it follows a job. Several processes may
    open one data folder; one of them hands out jobs.
    """

    def __init__(self, layout: Layout, db: Database) -> None:
        self.layout = layout
        self.hub = Hub()
        self.sets = Sets(db, layout)
        self.bases = Bases(db, layout)
        self.library = Library(db, layout)
        self.gallery = Gallery(db, layout)
        self.pairs = Pairs(self.sets, self.gallery)
        self.inputs = Inputs(db, layout)
        self.presets = Presets(layout)
        self.fitting = Fitting(self.bases, self.sets, devices)
        self.jobs = Jobs(db, layout, self.sets, self.bases, self.library, self.inputs)
        self.sweeps = Sweeps(layout, self.jobs)
        self.tools = Tools(self.bases, self.library, self.jobs.source, self.jobs.submit)
        self.jobs.tool = self.tools.run
        self.tools.probe = Probes(layout, self.jobs, self.sets, self.bases, self.library).run
        self.captions = Captions(layout, self.sets, self.jobs)
        self._db = db
        self.repaired = ""  # what had to be mended when the folder was opened, in a sentence
        self._dispatcher = Dispatcher(db, layout, devices)
        self._loop = Loop(self._dispatcher, Watch(db, layout, self.hub, record).look)
        self._changes = 0
        self.jobs.on_change = self._changed
        self.jobs.on_follow = self.start
        self.jobs.trouble = lambda: self._loop.trouble
        self.jobs.hub = self.hub

    @classmethod
    def open(cls, data: Path | None = None) -> "Workspace":
        """The workspace of a data folder, made if it is new. Raises InputError if it cannot be written."""
        layout = Layout(data_root(data)).create()
        url = os.environ.get("STUDIO_DATABASE_URL") or f"sqlite:///{layout.database}"
        told = set_aside(layout.database, layout.lock()) if url == f"sqlite:///{layout.database}" else ""
        workspace = cls(layout, Database.open(url, layout.tmp / "migrate.lock"))
        workspace.repaired = told
        workspace.jobs.go_on()
        return workspace

    def start(self) -> None:
        """Hand out jobs, or take over from whoever does when that ends; and feed the hub."""
        self._loop.start()

    def close(self) -> None:
        """Stop the background work. Jobs that run go on in their workers; idle workers end."""
        self._loop.stop()
        self.tools.close()
        self._db.close()

    def __enter__(self) -> "Workspace":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def version(self) -> tuple[int, int]:
        """Another one whenever the list of jobs changed in more than progress, whichever process changed it."""
        return self._changes, self.hub.turns

    def _changed(self) -> None:
        self._changes += 1
        self._loop.wake()

    def command_line(self, ref: str) -> str:
        """What asks for a job's work in a terminal."""
        return command_line(JobFolder.of(self.layout.jobs, self.jobs.show(ref).id).manifest())

    def events_since(self, seq: int, timeout: float = 0.0) -> list[dict[str, Any]]:
        """Messages of the hub after that number."""
        return self.hub.since(seq, timeout)

    def status(self) -> Status:
        """What runs, what waits, and how much room there is."""
        with self._db.read() as session:
            running = [record(row) for row in session.scalars(select(JobRow).where(JobRow.state == "running").order_by(JobRow.started))]
            queued = session.scalar(select(func.count()).select_from(JobRow).where(JobRow.state == "queued")) or 0
        usage = shutil.disk_usage(self.layout.root)
        return Status(
            version=studio.__version__,
            boot=self.hub.boot,
            data=str(self.layout.root),
            devices=tuple(self._device(device, {name for row in running for name in row.device.split(",")}) for device in self._dispatcher.backend.devices()),
            backend=self._dispatcher.backend.shown(),
            running=tuple(running),
            queued=queued,
            disk_free=usage.free,
            disk_total=usage.total,
            dispatching=self._dispatcher.leads,
            trouble=self._loop.trouble or self.repaired,
        )

    def reach(self) -> str:
        """Where jobs run, after a try. Raises RunError if it cannot be reached."""
        return self._dispatcher.backend.check()

    def _device(self, device: Device, busy: Container[str]) -> DeviceRecord:
        state = self._dispatcher.backend.worker(device.name)
        worker = "busy" if device.name in busy else "none"
        if state is not None:
            worker = "silent" if silent(state) else "busy" if state.job else "idle"
        return DeviceRecord(name=device.name, title=device.title, memory=device.memory, worker=worker, base=state.base if state else "")
