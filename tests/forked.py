"""Processes of the studio forked from one that has everything loaded: real ones, with signals, logs and exit codes, without their seconds of start-up."""

import contextlib
import multiprocessing
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

import pytest

from studio.jobs.processes import WorkerFolder
from tests import enter

_START = WorkerFolder.start


@dataclass
class Forked:
    """A process with what whoever started it asks of a subprocess.Popen."""

    process: BaseProcess
    stdin: IO[str] | None = None
    stdout: IO[str] | None = None

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def poll(self) -> int | None:
        self.process.join(0)
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout or 0.0)
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()


Worker = Forked | subprocess.Popen[bytes]


@dataclass
class Forks:
    """Starts processes, and ends the workers among them. Without a `context`, where a system cannot fork, workers begin from nothing."""

    context: Any
    workers: list[Worker] = field(default_factory=list)

    def worker(self, home: WorkerFolder, data: Path, kill_at: str = "") -> Worker:
        """What WorkerFolder.start does; killed at a place of `killpoints` if one is named."""
        if self.context is None:
            self.workers.append(_START(home, data))
            return self.workers[-1]
        home.create().stop.unlink(missing_ok=True)
        self.workers.append(self._start("work", str(data), home.device, kill_at, {**os.environ, "STUDIO_NODE": home.node}))
        return self.workers[-1]

    @contextlib.contextmanager
    def as_workers(self) -> Iterator[None]:
        """Every worker that this process starts meanwhile is forked; they are ended with it, idle or not."""
        before = len(self.workers)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(WorkerFolder, "start", lambda home, data: self.worker(home, data))
            try:
                yield
            finally:
                self.end(before)

    def end(self, first: int = 0) -> None:
        """End the workers started since then."""
        for worker in self.workers[first:]:
            worker.kill()
            worker.wait()

    def rank(self, arguments: Sequence[str], environ: Mapping[str, str]) -> Forked:
        """What ranks.started does."""
        with tempfile.TemporaryDirectory() as folder:
            pipes = [str(Path(folder) / name) for name in ("heard", "said")]
            for pipe in pipes:
                os.mkfifo(pipe)
            started = self._start("rank", list(arguments), dict(environ), *pipes)
            started.stdin = open(pipes[0], "w", encoding="utf-8")  # noqa: SIM115  theirs who hold the process
            started.stdout = open(pipes[1], encoding="utf-8")  # noqa: SIM115
            return started

    def command(self, arguments: Sequence[str], folder: Path, environ: Mapping[str, str], seconds: float) -> tuple[int, str, str]:
        """Exit code and what was said on standard output and standard error by a command line in that folder."""
        with tempfile.TemporaryDirectory() as words:
            out, err = Path(words) / "out", Path(words) / "err"
            started = self._start("command", list(arguments), str(folder), dict(environ), str(out), str(err))
            try:
                code = started.wait(seconds)
            finally:
                started.kill()
            return code, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8")

    def _start(self, name: str, *arguments: object) -> Forked:
        process = self.context.Process(target=enter.run, args=(name, *arguments))
        process.start()
        return Forked(process)


def forkserver() -> Forks:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return Forks(None)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.warm", "tests.enter"])
    return Forks(context)
