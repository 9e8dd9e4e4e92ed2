"""One training by several processes, watched from the worker: started together, ended together."""

import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING

from studio.errors import RunError
from studio.events import TERMINAL, Event, Failed, from_line
from studio.jobs.devices import torch_name

if TYPE_CHECKING:
    from studio.jobs.handlers import Work

BEREAVED = 75  # exit status of a process that ended because another one did
LOOK_SECONDS = 0.2
LAST_WORDS_SECONDS = 3.0  # for the others to say why they ended, once one has


def trained(work: "Work", processes: int) -> Iterator[Event]:
    """The events of a training by so many processes. Raises RunError if one of them dies."""
    ranks = _Ranks(work, processes)
    try:
        yield from ranks.events()
    finally:
        ranks.end()


def places(devices: Sequence[str], processes: int) -> list[str]:
    """The device of every process: the cards that were set aside, one each; where there is no card they share the processor.

    Raises RunError if there are fewer cards than processes.
    """
    if not devices[0].startswith("cuda"):
        return [torch_name(devices[0])] * processes
    if len(devices) < processes:
        raise RunError(f"processes {processes}: {len(devices)} GPUs were set aside for them ({', '.join(devices)}); lower it, or resume the run")
    return list(devices[:processes])


def seen(devices: Sequence[str]) -> dict[str, str]:
    """The environment in which these cards, and no other, are cuda:0, cuda:1 and so on: what a library takes by its own count is right then."""
    if not devices[0].startswith("cuda"):
        return {}
    outer = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    numbers = [int(device.partition(":")[2] or 0) for device in devices]
    return {"CUDA_VISIBLE_DEVICES": ",".join(outer[number] if outer else str(number) for number in numbers)}


class _Ranks:
    def __init__(self, work: "Work", processes: int) -> None:
        self._work = work
        self._said: queue.Queue[tuple[int, Event | None]] = queue.Queue()
        self._left = False
        devices = places(work.devices or (work.warm.device,), processes)
        port = _free_port()
        self._cards = seen(devices)
        self._processes = [self._start(rank, f"cuda:{rank}" if self._cards else device, processes, port) for rank, device in enumerate(devices)]
        for rank, process in enumerate(self._processes):
            assert process.stdout is not None
            threading.Thread(target=self._read, args=(rank, process.stdout), daemon=True).start()

    def _start(self, rank: int, device: str, processes: int, port: int) -> subprocess.Popen[str]:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
        near = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
        threads = str(max(1, (os.cpu_count() or 1) // processes))
        environ = {"OMP_NUM_THREADS": threads, **os.environ, **near, **self._cards, "MASTER_ADDR": "127.0.0.1"}
        return started([str(self._work.layout.root), self._work.folder.id, device], environ | {key: str(value) for key, value in numbers.items()})

    def _read(self, rank: int, stream: IO[str]) -> None:
        for line in stream:
            self._said.put((rank, from_line(line)))
        self._said.put((rank, None))

    def events(self) -> Iterator[Event]:
        """What the first process says, up to its last word or anybody's failure."""
        while True:
            if self._work.requests.leave and not self._left:
                self._left = True
                self._tell("leave")
            try:
                rank, event = self._said.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                continue
            if event is None:
                if rank and self._done(rank):
                    continue  # the first one still has checkpoint and figures to write
                yield self._why(rank)
                return
            if isinstance(event, Failed):
                yield event
                return
            if rank == 0:
                yield event
                if event.kind in TERMINAL:
                    return

    def _done(self, rank: int) -> bool:
        """Whether a process that says nothing more has ended because its part is done."""
        try:
            return self._processes[rank].wait(LAST_WORDS_SECONDS) == 0
        except subprocess.TimeoutExpired:
            return False

    def _tell(self, word: str) -> None:
        pipe = self._processes[0].stdin
        assert pipe is not None
        try:
            pipe.write(word + "\n")
            pipe.flush()
        except BrokenPipeError:
            return  # it is gone, and the next look finds that

    def _why(self, rank: int) -> Failed:
        """Why the training ended without a last word. Raises RunError unless another process has said it."""
        end = time.monotonic() + LAST_WORDS_SECONDS
        gone: int | None = None
        while gone is None and time.monotonic() < end:
            try:
                _, event = self._said.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                event = None
            if isinstance(event, Failed):
                return event
            gone = next((i for i, one in enumerate(self._processes) if one.poll() not in (None, 0, BEREAVED)), None)
        who = rank if gone is None else gone
        code = self._processes[who].poll()
        how = "was killed by the system, most likely because memory ran out" if code == -9 else f"ended with status {code}"
        raise RunError(f"process {who + 1} of {len(self._processes)} {how}; resume goes on from the last checkpoint")

    def end(self) -> None:
        """End what is left of them."""
        for process in self._processes:
            if process.stdin is not None:
                try:
                    process.stdin.close()
                except BrokenPipeError:
                    continue
        for process in self._processes:
            try:
                process.wait(LAST_WORDS_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def started(arguments: Sequence[str], environ: Mapping[str, str]) -> "subprocess.Popen[str]":
    """A process of the training that listens to its standard input and speaks through its standard output."""
    command = [sys.executable, "-m", "studio.jobs.rank", *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=dict(environ))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
