"""The queue: one process at a time hands out jobs, takes in what workers say, and keeps the rows true.

Whoever holds `dispatcher.lock` dispatches: the studio, or a command that runs without one. The others only add rows and read
folders; one of them takes over when the lock falls free. Workers outlive all of them.

Several machines may share one data folder and one PostgreSQL database: each has a name, STUDIO_NODE, a lock of that name, and
follows the jobs that it took. A job is taken by one UPDATE that holds only while it is still queued, so nobody takes it twice.

What happens when something is killed:
    dispatcher   workers go on; the next one to hold the lock reads what they said meanwhile
    worker       its job becomes `interrupted`, with its last checkpoint kept
    both         as above; queued jobs keep their place
    node         another one takes over its jobs when it has no dispatcher and its worker has been silent for a minute
"""

import logging
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from filelock import FileLock, Timeout
from sqlalchemy import CursorResult, select, update

import studio
from studio.errors import NotFound
from studio.events import CancelledEvent
from studio.jobs.devices import Device
from studio.jobs.failures import kept, worker_died
from studio.jobs.folder import Claim, EventWriter, JobFolder
from studio.jobs.processes import WorkerFolder, alive, end, own_node
from studio.jobs.progress import advanced
from studio.jobs.reconcile import reconcile
from studio.jobs.results import register
from studio.library.database import Database
from studio.library.layout import Layout
from studio.library.models import JobRow

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.2
CANCEL_SECONDS = 30.0  # a job that has not stopped by itself after this loses its worker
LOST_SECONDS = 60.0  # a worker of another node that has said nothing for so long is gone with it
ADOPT_SECONDS = 5.0  # between two looks at the jobs of other nodes
STARTS = 3  # attempts at a worker before its job is given up


class Dispatcher:
    """Hands queued jobs to workers and keeps rows true; `tick` does one round."""

    def __init__(
        self, db: Database, layout: Layout, devices: Callable[[], list[Device]], cancel_seconds: float = CANCEL_SECONDS, node: str | None = None
    ) -> None:
        self._db = db
        self._layout = layout
        self._devices = devices
        self._cancel_seconds = cancel_seconds
        self.node = own_node() if node is None else node
        self._lock = FileLock(layout.lock(self.node), thread_local=False)
        self._looked = 0.0
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._starts: dict[str, int] = {}

    @property
    def leads(self) -> bool:
        return self._lock.is_locked

    def try_lead(self) -> bool:
        """Whether this process hands out jobs; takes over, and sets the rows right, when nobody does."""
        if self._lock.is_locked:
            return True
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        try:
            reconcile(self._db, self._layout)
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        """Stop handing out jobs. Idle workers are asked to end; busy ones finish their job first."""
        if not self._lock.is_locked:
            return
        for device in self._devices():
            home = self.home(device.name)
            if home.state() is not None:
                home.stop.touch()
        self._lock.release()

    def tick(self) -> None:
        """Take in what running jobs said, then give idle devices their next job."""
        with self._db.read() as session:
            running = list(session.scalars(select(JobRow).where(JobRow.state == "running", JobRow.node == self.node)))
        for row in running:
            self._follow(row)
        self._hand_out()
        if time.monotonic() - self._looked > ADOPT_SECONDS:
            self._looked = time.monotonic()
            self._adopt()

    def home(self, device: str) -> WorkerFolder:
        """The folder of this node's worker for a device."""
        return WorkerFolder(self._layout.workers, device, self.node)

    def _adopt(self) -> None:
        """Take over jobs of nodes that nobody dispatches and whose worker is gone."""
        with self._db.read() as session:
            foreign = list(session.scalars(select(JobRow).where(JobRow.state == "running", JobRow.node != self.node)))
        for row in foreign:
            lock = FileLock(self._layout.lock(row.node))
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            try:
                home = WorkerFolder(self._layout.workers, row.device or "cpu", row.node)
                if home.quiet(LOST_SECONDS):
                    logger.warning("job %s of node %r is looked after here", row.id, row.node)
                    home.take_back(row.id)
                    self._change(row.id, "running", node=self.node)
            finally:
                lock.release()

    def _hand_out(self) -> None:
        with self._db.read() as session:
            order = (JobRow.priority.desc(), JobRow.queued, JobRow.id)
            queued = list(session.scalars(select(JobRow).where(JobRow.state == "queued").order_by(*order).limit(16)))
            busy = set(session.scalars(select(JobRow.device).where(JobRow.state == "running", JobRow.node == self.node)))
        free = [device.name for device in self._devices() if device.name not in busy]
        for row in queued:
            if not free:
                return
            device = self._best(free, row)
            taken = {"state": "running", "device": device, "node": self.node, "message": "waiting for the worker", "cancelling": None}
            if self._change(row.id, "queued", **taken):
                free.remove(device)
                self._deliver(row.id, self.home(device).create())

    def _best(self, free: list[str], row: JobRow) -> str:
        """The idle device that already holds the job's base, else the first."""
        if row.kind == "generate":
            for device in free:
                state = self.home(device).state()
                if state is not None and state.base == row.base:
                    return device
        return free[0]

    def _follow(self, row: JobRow) -> None:
        """One round for a running job: read, register, and look whether its worker lives."""
        try:
            folder = JobFolder.of(self._layout.jobs, row.id)
            manifest = folder.manifest()
        except (NotFound, FileNotFoundError):
            self._change(row.id, "running", state="failed", message="the job's folder is gone", finished=time.time())
            return
        claim = folder.claim()
        dead = claim is not None and not alive(claim.pid, claim.started)  # asked before reading: its last words count
        later = next((segment for segment in manifest.segments if segment.number == row.segment + 1), None)
        events, offset = folder.read(row.offset, later.offset if later else None)
        values = advanced(row.values(), events)
        troubles = register(self._db, self._layout, folder, row.segment, events)
        if troubles:
            values["result"] = {**values["result"], "troubles": [*values["result"].get("troubles", []), *troubles]}
        values["offset"] = offset
        if later:  # an older stretch was read to its end: rows that are rebuilt from folders come through here
            values.update(segment=later.number, state="running", finished=None)
        changed = {name: value for name, value in values.items() if value != getattr(row, name)}
        if changed:
            self._change(row.id, "running", **changed)
        if values["state"] == "running" and not later:
            self._watch(row, folder, claim, dead)
        elif values["state"] != "running":
            self._starts.pop(row.id, None)

    def _watch(self, row: JobRow, folder: JobFolder, claim: Claim | None, dead: bool) -> None:
        """A job without a last word: is it claimed, alive, and does it obey a cancel?"""
        overdue = row.cancelling is not None and time.time() - row.cancelling > self._cancel_seconds
        home = self.home(row.device or "cpu").create()
        if dead and row.cancelling is not None:
            self._cancelled(folder)
        elif dead:
            message, remedy, held = worker_died(self._exit_code(claim), folder.checkpoints())
            self._change(row.id, "running", state="interrupted", message=message, remedy=remedy, kept=held, finished=time.time())
        elif claim is None and row.cancelling is not None and home.take_back(row.id):
            self._cancelled(folder)
        elif claim is not None and overdue:
            end(claim.pid, claim.started)
        elif claim is None:
            self._deliver(row.id, home)

    def _cancelled(self, folder: JobFolder) -> None:
        """The last word of a job whose worker cannot say it any more."""
        writer = EventWriter(folder.events_file)
        checkpoints = folder.checkpoints()
        writer.append(CancelledEvent(step=checkpoints[-1].step if checkpoints else 0, kept=kept(checkpoints)))
        writer.close()

    def _deliver(self, id: str, home: WorkerFolder) -> None:
        """Make sure that the job lies in the inbox of a living worker, or that one is starting."""
        if id not in home.waiting():
            home.hand(id)
        starting = self._started.get(home.device)
        state = home.state()
        if state is not None and state.version != studio.__version__ and not state.job:
            end(state.pid, state.started)  # started before an update of the program
        elif state is not None or (starting is not None and starting.poll() is None):
            home.stop.unlink(missing_ok=True)
            return
        if self._starts.get(id, 0) >= STARTS:
            (home.inbox / id).unlink(missing_ok=True)
            message = f"the worker for {home.device} does not start"
            self._change(id, "running", state="failed", message=message, remedy=f"see {home.log}, or run doctor", finished=time.time())
            return
        self._starts[id] = self._starts.get(id, 0) + 1
        self._started[home.device] = home.start(self._layout.root)

    def _exit_code(self, claim: Claim | None) -> int | None:
        process = self._started.get(claim.device) if claim else None
        return process.poll() if process is not None and claim is not None and process.pid == claim.pid else None

    def _change(self, id: str, expected: str, **values: Any) -> bool:
        """Change a row that is still in that state; False if somebody else was first."""
        with self._db.write() as session:
            statement = update(JobRow).where(JobRow.id == id, JobRow.state == expected).values(**values, updated=time.time())
            return cast(CursorResult[Any], session.execute(statement)).rowcount == 1


class Loop:
    """The background thread of a process: dispatches if it can, and calls `after` in every round."""

    def __init__(self, dispatcher: Dispatcher, after: Callable[[], None]) -> None:
        self._dispatcher = dispatcher
        self._after = after
        self._wake = threading.Event()
        self._stop = False
        self._thread: threading.Thread | None = None
        self.trouble = ""  # why the last round failed, for the status bar

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """Begin the next round now."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread and give the lock back."""
        self._stop = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=30)
        self._dispatcher.release()

    def _run(self) -> None:
        while not self._stop:
            try:
                if self._dispatcher.try_lead():
                    self._dispatcher.tick()
                self._after()
                self.trouble = ""
            except Exception as error:  # the border of the thread: a full disk or a locked database passes, and the studio outlives it
                if self.trouble != str(error):
                    logger.exception("the queue waits")
                self.trouble = str(error)
            self._wake.wait(TICK_SECONDS)
            self._wake.clear()
