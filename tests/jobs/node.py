"""A studio process of the tests' own: it hands out jobs like any other, to real worker processes that also know a job that does nothing.

`python -m tests.jobs.node DATA` runs until it is killed; `python -m tests.jobs.node DATA DEVICE` is such a worker.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from studio.events import Event, Finished, Loading
from studio.jobs import worker
from studio.jobs.folder import Manifest
from studio.jobs.handlers import Work
from studio.jobs.processes import WorkerFolder
from studio.library.ids import new_id
from studio.workspace import Workspace

KIND = "nothing"
RAN = "ran.txt"


def nothing(work: Work) -> Iterator[Event]:
    """Note who ran it, and end."""
    yield Loading(phase="doing nothing")
    with open(work.folder.path / RAN, "a") as file:
        file.write(f"{os.getpid()} {work.warm.device}\n")
    yield Finished(step=1)


def manifest(name: str) -> Manifest:
    return Manifest(id=new_id(), kind=KIND, name=name, config={"name": name}, settings={"name": name})


def start(data: Path, **environment: str) -> "subprocess.Popen[bytes]":
    """Such a studio as a process of its own."""
    return subprocess.Popen([sys.executable, "-m", "tests.jobs.node", str(data)], env={**os.environ, **environment}, cwd=Path(__file__).parents[2])


def end_workers(data: Path) -> None:
    for folder in (data / "workers").iterdir():
        node, _, device = folder.name.rpartition("@")
        state = WorkerFolder(data / "workers", device, node).state()
        if state is not None:
            os.kill(state.pid, signal.SIGTERM)


def _start_ours(self: WorkerFolder, data: Path) -> "subprocess.Popen[bytes]":
    self.create()
    self.stop.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.jobs.node", str(data), self.device]
    with open(self.log, "ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "STUDIO_NODE": self.node}, start_new_session=True)


def main() -> int:
    if len(sys.argv) > 2:
        worker.ALL_HANDLERS[KIND] = nothing
        return worker.main(*sys.argv[1:3])
    WorkerFolder.start = _start_ours
    studio = Workspace.open(Path(sys.argv[1]))
    studio.start()
    while True:
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
