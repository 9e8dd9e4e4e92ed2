"""The process that owns one device: takes job after job from its inbox, appends what happens to their folders.

Run as `python -m studio.jobs.worker DATA DEVICE`. It needs no database and no pipe, so it outlives whoever started it.
It ends after some idle minutes (STUDIO_WORKER_IDLE, seconds) or when a file `stop` lies in its folder and no job is waiting.
"""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from studio.errors import Cancelled, InputError, Interrupted, NotFound, RunError
from studio.events import TERMINAL, CancelledEvent, Event, Loading, PausedEvent, Started, Step
from studio.jobs import captioning, evaluating, passes, probing, tools
from studio.jobs.devices import torch_name
from studio.jobs.failures import device_lost, explain, kept
from studio.jobs.folder import Claim, EventWriter, FolderRequests, JobFolder
from studio.jobs.handlers import HANDLERS, Warm, Work
from studio.jobs.log import redirected
from studio.jobs.processes import HEARTBEAT_SECONDS, WorkerFolder, WorkerState, own_node, own_start
from studio.killpoints import reached
from studio.library.layout import Layout

POLL_SECONDS = 0.1
ARRIVING_SECONDS = 0.05  # jobs of one pass are handed in one after the other
LEAVING_SECONDS = 15.0
ALL_HANDLERS = {**HANDLERS, **tools.HANDLERS, **evaluating.HANDLERS, **captioning.HANDLERS, **probing.HANDLERS}
RESERVE_BYTES = 2**16  # kept on the disk so that a claim and a last word fit when nothing else does
STEPS_TO_CANCEL = 2  # steps an engine may still take after a cancel before it is closed from here


class Worker:
    """One device, its inbox, and the base model it keeps warm.

    device: of a worker that a cluster has given its own, all of them by commas. cluster: the address of that cluster.
    """

    def __init__(self, layout: Layout, device: str, home: WorkerFolder | None = None, cluster: str = "") -> None:
        self._layout = layout
        self._home = (home or WorkerFolder(layout.workers, device, own_node())).create()
        self._cluster = cluster
        self._state = WorkerState(pid=os.getpid(), started=own_start(), device=device)
        self._warm = Warm(torch_name(device.partition(",")[0]))
        self._writing = threading.Lock()
        self._requests: list[FolderRequests] = []
        self._leaving = False

    def run(self, idle_seconds: float) -> None:
        """Work until idle for so long, or asked to stop."""
        threading.Thread(target=self._beat, daemon=True).start()
        last = time.monotonic()
        while not self._leaving:
            waiting = self._home.waiting()
            if waiting:
                self._take(self._together(waiting))
                last = time.monotonic()
            elif self._home.stop.exists() or time.monotonic() - last > idle_seconds:
                return
            else:
                time.sleep(POLL_SECONDS)

    def leave(self, *_: object) -> None:
        """End at the next step boundary, a checkpoint saved; asked again, at once."""
        if self._leaving:
            os._exit(128 + signal.SIGTERM)
        self._leaving = True
        for requests in self._requests:
            requests.leave = True

    def _beat(self) -> None:
        while True:
            self._note()
            time.sleep(HEARTBEAT_SECONDS)

    def _note(self, **changes: str) -> None:
        # The next beat comes: on Windows somebody may be reading it, and a disk that is full now may have room then
        with self._writing, contextlib.suppress(OSError):
            self._state = self._state.model_copy(update={**changes, "beat": time.time()})
            self._home.write_state(self._state)

    def _together(self, waiting: list[str]) -> list[str]:
        """The first job and those that go into one pass with it, once no more of them arrive."""
        while self._place(waiting[0]):
            time.sleep(ARRIVING_SECONDS)
            again = self._home.waiting()
            if again == waiting or not again:
                break
            waiting = again
        return [waiting[0], *passes.mates(waiting[0], waiting[1:], self._place)]

    def _place(self, id: str) -> passes.Place | None:
        with contextlib.suppress(NotFound):
            manifest = JobFolder.of(self._layout.jobs, id).manifest()
            return passes.place(manifest.kind, str(manifest.base), manifest.settings)

    def _take(self, ids: list[str]) -> None:
        """Claim these jobs and run them: one, with its output going to its own log, or several in one pass."""
        taken = [found for id in ids if (found := self._taken(id))]
        if len(taken) > 1:
            self._run_together([folder for folder, _ in taken], taken[0][1])
        elif taken:
            self._run(*taken[0])

    def _taken(self, id: str) -> tuple[JobFolder, str] | None:
        """A job that is claimed now, and its devices; None if it is not ours to run."""
        taken = self._home.inbox / f".{id}"
        try:
            os.rename(self._home.inbox / id, taken)  # whoever takes it back before, as a cancel does, wins
            folder = JobFolder.of(self._layout.jobs, id)
        except (FileNotFoundError, NotFound):
            taken.unlink(missing_ok=True)
            return None
        begun = folder.claim() is not None  # handed in twice, or left by a worker that died: not ours to run again
        devices = taken.read_text() or self._state.device
        if not begun:
            claim = self._claim(folder.manifest().segment.number, devices)
            try:
                folder.write_claim(claim)
            except OSError:
                self._home.reserve.unlink(missing_ok=True)
                folder.write_claim(claim)
        taken.unlink(missing_ok=True)
        reached("claim")
        return None if begun else (folder, devices)

    def _claim(self, segment: int, devices: str) -> Claim:
        me = self._state
        return Claim(pid=me.pid, started=me.started, segment=segment, device=devices, node=self._home.node, cluster=self._cluster)

    def _run(self, folder: JobFolder, devices: str) -> None:
        self._note(job=folder.id)
        with contextlib.suppress(OSError):  # without it, less is said of a disk that fills up
            self._home.keep_reserve(RESERVE_BYTES)
        writer = EventWriter(folder.events_file)
        try:
            with open(folder.log, "a", encoding="utf-8", buffering=1) as log, redirected(log.fileno()):
                for event in self._events(folder, devices):
                    self._tell(folder, writer, event)
        finally:
            writer.close()
            self._note(job="", base=self._warm.name)

    def _run_together(self, folders: list[JobFolder], devices: str) -> None:
        """Jobs in one pass: events and last words go to the folder of each, what the process prints to the log of the first."""
        self._note(job=folders[0].id)
        with contextlib.suppress(OSError):
            self._home.keep_reserve(RESERVE_BYTES)
        works = [self._work(folder, devices) for folder in folders]
        self._requests = [work.requests for work in works]
        writers = {number: EventWriter(folder.events_file) for number, folder in enumerate(folders)}
        try:
            with open(folders[0].log, "a", encoding="utf-8", buffering=1) as log, redirected(log.fileno()):
                for number, said in passes.draw(works):
                    event = self._last(works[number], said) if isinstance(said, Exception) else said
                    self._tell(folders[number], writers[number], event)
                    if event.kind in TERMINAL:
                        writers.pop(number).close()
        finally:
            for writer in writers.values():
                writer.close()
            self._note(job="", base=self._warm.name)

    def _tell(self, folder: JobFolder, writer: EventWriter, event: Event) -> None:
        """Append an event. If the disk has no room for it, the room kept for that takes the last word, and this process ends."""
        try:
            writer.append(event)
        except OSError as error:
            last = event if event.kind in TERMINAL else explain(error, {}, folder.path, folder.checkpoints())
            self._home.reserve.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                writer.append(last)
            raise

    def _events(self, folder: JobFolder, devices: str) -> Iterator[Event]:
        """Everything the job says; exactly one terminal event, at the end."""
        work = self._work(folder, devices)
        self._requests = [work.requests]
        try:
            if work.requests.cancelled():
                raise Cancelled
            for event in stoppable(ALL_HANDLERS[work.manifest.kind](work), work.requests):
                yield event
                if event.kind in TERMINAL:
                    return
            raise RunError("the job ended without a result; see its log.txt")
        except Exception as error:  # the border of the process: whatever happened becomes the job's last event
            yield self._last(work, error)

    def _work(self, folder: JobFolder, devices: str) -> Work:
        requests = FolderRequests(folder.path)
        requests.leave = self._leaving
        return Work(folder, folder.manifest(), self._layout, requests, self._warm, tuple(devices.split(",")))

    def _last(self, work: Work, error: Exception) -> Event:
        """The last event of a job that this ended."""
        checkpoints = work.folder.checkpoints()
        step = checkpoints[-1].step if checkpoints else 0
        if isinstance(error, Cancelled):
            return CancelledEvent(step=step, kept=kept(checkpoints))
        if isinstance(error, Interrupted):
            self._warm.free()
            if work.requests.paused():
                return PausedEvent(step=step, kept=kept(checkpoints))
            return explain(error, work.manifest.settings, work.folder.path, checkpoints)
        traceback.print_exception(error)
        if not isinstance(error, InputError):  # found before the base was touched, or the base was given back
            self._warm.free()
        self._leaving = self._leaving or device_lost(error)  # nothing works any more in a process that lost its device
        return explain(error, work.manifest.settings, work.folder.path, checkpoints)


def stoppable(events: Iterator[Event], requests: FolderRequests) -> Iterator[Event]:
    """The same events, ended where an engine does not itself see a cancel, or that the process must end: while it loads, or after some steps."""
    steps, stepping = 0, False
    try:
        for event in events:
            yield event
            stepping = (stepping and not isinstance(event, Loading)) or isinstance(event, Started)
            if event.kind in TERMINAL or not (requests.cancelled() or requests.leaving()):
                continue
            steps += isinstance(event, Step)
            if not stepping or steps > STEPS_TO_CANCEL:
                if requests.cancelled():
                    raise Cancelled
                raise Interrupted("the worker was told to end")
    finally:
        close = getattr(events, "close", None)
        if close is not None:
            close()


def main(data: str, device: str) -> int:
    layout = Layout(Path(data))
    home = WorkerFolder(layout.workers, device, own_node()).create()
    try:
        with FileLock(home.lock).acquire(timeout=LEAVING_SECONDS):  # the one before may be about to end
            worker = Worker(layout, device)
            signal.signal(signal.SIGTERM, worker.leave)
            worker.run(float(os.environ.get("STUDIO_WORKER_IDLE", "600")))
    except Timeout:
        print(f"another worker owns {device}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    code = main(*sys.argv[1:3])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # nothing is left to do, and taking half a million objects apart would keep whoever waits for another second
