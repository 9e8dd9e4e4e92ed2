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
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from filelock import FileLock, Timeout
from sqlalchemy import CursorResult, func, select, update

from studio.errors import NotFound
from studio.events import CancelledEvent, Failed
from studio.jobs import passes, stretch
from studio.jobs.backends import chosen
from studio.jobs.devices import Device, listed, wanted
from studio.jobs.failures import kept, worker_died
from studio.jobs.folder import Claim, EventWriter, JobFolder
from studio.jobs.processes import WorkerFolder, own_node, silent
from studio.jobs.progress import NOT_RESPONDING, advanced
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
PASSING_SECONDS = 300.0  # so long smaller jobs may go before one that waits for several devices at once
STARTS = 3  # attempts at a worker before its job is given up


class Dispatcher:
    """Hands queued jobs to workers and keeps rows true; `tick` does one round."""

    def __init__(
        self, db: Database, layout: Layout, devices: Callable[[], list[Device]], cancel_seconds: float = CANCEL_SECONDS, node: str | None = None
    ) -> None:
        self._db = db
        self._layout = layout
        self._cancel_seconds = cancel_seconds
        self.node = own_node() if node is None else node
        self.backend = chosen(layout, devices, self.node)
        self.trouble = ""  # why nothing is handed out, if that is so
        self._lock = FileLock(layout.lock(self.node), thread_local=False)
        self._looked = 0.0
        self._starts: dict[str, int] = {}
        self._asked: dict[str, float] = {}  # when a cancel was first seen here; the row's own stamp moves with the clock
        self._short: dict[str, float] = {}  # since when a job sees too few free devices

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
        """Stop handing out jobs. What runs goes on."""
        if not self._lock.is_locked:
            return
        try:
            with self._db.read() as session:
                running = session.scalar(select(func.count()).select_from(JobRow).where(JobRow.state == "running", JobRow.node == self.node))
            self.backend.release(bool(running))
        finally:
            self._lock.release()

    def tick(self) -> None:
        """Take in what running jobs said, then give idle devices their next job."""
        self.trouble = self.backend.look()
        with self._db.read() as session:
            running = list(session.scalars(select(JobRow).where(JobRow.state == "running", JobRow.node == self.node)))
        for row in running:
            self._follow(row)
        if not self.trouble:
            self._hand_out()
        if time.monotonic() - self._looked > ADOPT_SECONDS:
            self._looked = time.monotonic()
            self._adopt()

    def _home(self, row: JobRow) -> WorkerFolder:
        """Where the worker of a running job gets it."""
        return self.backend.home(row.id, row.segment, (listed(row.device) or ["cpu"])[0], row.node)

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
                home = self._home(row)
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
            busy = set(listed(",".join(session.scalars(select(JobRow.device).where(JobRow.state == "running", JobRow.node == self.node)))))
        present = [device.name for device in self.backend.devices()]
        together = self.backend.together()
        free = [name for name in present if name not in busy]
        self._short = {row.id: self._short[row.id] for row in queued if row.id in self._short}
        given: set[str] = set()
        for row in queued:
            if not free:
                return
            if row.id in given:
                continue
            n = wanted(row.kind, row.settings, present, together)
            if n > together:
                self._too_many(row, n)
            elif n <= len(free):
                devices = [self._best(free, row)] if n == 1 else free[:n]
                mates = self._mates(row, [other for other in queued if other is not row and other.id not in given], devices)
                given |= {row.id for row in mates}
                if self._give(row, devices, mates):
                    free = [name for name in free if name not in devices]
            elif not self._passed(row, n):
                return

    def _mates(self, row: JobRow, others: list[JobRow], devices: list[str]) -> list[JobRow]:
        """Jobs that the same worker can draw in one pass with this one."""
        home = self.backend.home(row.id, row.segment, devices[0], self.node).path
        same = [other for other in others if self.backend.home(other.id, other.segment, devices[0], self.node).path == home]
        return passes.mates(row, same, lambda one: passes.place(one.kind, one.base, one.settings))

    def _give(self, row: JobRow, devices: list[str], mates: Sequence[JobRow] = ()) -> bool:
        """Whether this dispatcher was the one to take the job; it, and its mates before it, are on their way to the worker then."""
        taken = {"state": "running", "device": ",".join(devices), "node": self.node, "message": "waiting for the worker", "cancelling": None}
        if not self._change(row.id, "queued", **taken):
            return False
        for device in devices[1:]:
            self.backend.vacate(device)  # a base that an idle worker keeps there would be in the way
        home = self.backend.home(row.id, row.segment, devices[0], self.node).create()
        for mate in mates:
            if self._change(mate.id, "queued", **taken):
                home.hand(mate.id, devices)
        self._deliver(row.id, home, devices)
        return True

    def _passed(self, row: JobRow, n: int) -> bool:
        """Whether jobs behind this one, which waits for `n` devices, may still go before it; after a while what falls free is kept for it."""
        since = self._short.setdefault(row.id, time.monotonic())
        waiting = f"waiting for {n} devices"
        if row.message != waiting:
            self._change(row.id, "queued", message=waiting)
        return time.monotonic() - since < PASSING_SECONDS

    def _too_many(self, row: JobRow, n: int) -> None:
        """A job that wants more devices than there are fails, unless another node may have them."""
        if self.node:
            return
        told = Failed(
            message=f"processes {n}: there are {self.backend.together()} GPUs for them", remedy="lower processes and start it again", error="RunError"
        )
        if self._change(row.id, "queued", state="failed", message=told.message, remedy=told.remedy, finished=time.time()):
            writer = EventWriter(JobFolder.of(self._layout.jobs, row.id).events_file)
            writer.append(told)
            writer.close()

    def _best(self, free: list[str], row: JobRow) -> str:
        """The idle device that already holds the job's base, else the first."""
        if row.kind == "generate":
            for device in free:
                state = self.backend.worker(device)
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
        dead = claim is not None and not self.backend.alive(self._home(row), claim)  # asked before reading: its last words count
        later = next((segment for segment in manifest.segments if segment.number == row.segment + 1), None)
        events, offset = folder.read(row.offset, later.offset if later else None)
        values = advanced(row.values(), events)
        troubles = register(self._db, self._layout, folder, row.segment, events)
        if troubles:
            values["result"] = {**values["result"], "troubles": [*values["result"].get("troubles", []), *troubles]}
        values["offset"] = offset
        if later:  # an older stretch was read to its end: rows that are rebuilt from folders come through here
            values.update(segment=later.number, state="running", finished=None)
        if values["state"] == "interrupted" and self._again(row, folder, values["message"]):
            return
        changed = {name: value for name, value in values.items() if value != getattr(row, name)}
        if changed:
            self._change(row.id, "running", **changed)
        if values["state"] == "running" and not later:
            self._watch(row, folder, claim, dead)
        elif values["state"] != "running":
            self._starts.pop(row.id, None)
            self._asked.pop(row.id, None)

    def _watch(self, row: JobRow, folder: JobFolder, claim: Claim | None, dead: bool) -> None:
        """A job without a last word: is it claimed, alive, and does it obey a cancel?"""
        now = time.monotonic()
        overdue = row.cancelling is not None and now - self._asked.setdefault(row.id, now) >= self._cancel_seconds
        home = self._home(row)
        if dead:
            self.backend.end(home, claim)
        if dead and row.cancelling is not None:
            self._cancelled(folder)
        elif dead:
            message, remedy, held = worker_died(self.backend.exit_code(home, claim), folder.checkpoints())
            if not self._again(row, folder, message):
                self._change(row.id, "running", state="interrupted", message=message, remedy=remedy, kept=held, finished=time.time())
        elif claim is None and row.cancelling is not None and home.take_back(row.id):
            self.backend.end(home, None)
            self._cancelled(folder)
        elif claim is not None and overdue and not self._shared(row):
            self.backend.end(home, claim)
        elif claim is None and not self.trouble:
            self._deliver(row.id, home.create(), listed(row.device))
        elif claim is not None:
            self._heed(row, home)

    def _shared(self, row: JobRow) -> bool:
        """Whether its worker draws for another job too, which nobody cancels and which would be lost with it."""
        same = (JobRow.state == "running", JobRow.node == self.node, JobRow.device == row.device, JobRow.id != row.id)
        with self._db.read() as session:
            return session.scalar(select(func.count()).select_from(JobRow).where(*same, JobRow.cancelling.is_(None))) != 0

    def _heed(self, row: JobRow, home: WorkerFolder) -> None:
        """Say so while the worker of a job lives and does not respond. Nothing else is done: it may go on, and two must never work on one job."""
        state = home.state()
        now = state is not None and silent(state)
        if now != (row.message == NOT_RESPONDING):
            self._change(row.id, "running", message=NOT_RESPONDING if now else "")

    def _again(self, row: JobRow, folder: JobFolder, message: str) -> bool:
        """Whether a job that lost its worker was put into the queue again, as backends do that move jobs between machines."""
        if row.cancelling is not None or not stretch.again(self._db, folder, message, self.backend.retries):
            return False
        self._starts.pop(row.id, None)
        return True

    def _cancelled(self, folder: JobFolder) -> None:
        """The last word of a job whose worker cannot say it any more."""
        writer = EventWriter(folder.events_file)
        checkpoints = folder.checkpoints()
        writer.append(CancelledEvent(step=checkpoints[-1].step if checkpoints else 0, kept=kept(checkpoints)))
        writer.close()

    def _deliver(self, id: str, home: WorkerFolder, devices: list[str]) -> None:
        """Make sure that the job lies in the inbox of a living worker, or that one is starting."""
        if id not in home.waiting():
            home.hand(id, devices)
        if self.backend.present(home):
            return
        if self._starts.get(id, 0) >= STARTS:
            (home.inbox / id).unlink(missing_ok=True)
            message = f"the worker for {home.device} does not start"
            self._change(id, "running", state="failed", message=message, remedy=self.backend.why_not(home), finished=time.time())
            return
        self._starts[id] = self._starts.get(id, 0) + 1
        self.backend.start(home, id, devices)

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
                self.trouble = self._dispatcher.trouble
            except Exception as error:  # the border of the thread: a full disk or a locked database passes, and the studio outlives it
                if self.trouble != str(error):
                    logger.exception("the queue waits")
                self.trouble = str(error)
            self._wake.wait(TICK_SECONDS)
            self._wake.clear()
