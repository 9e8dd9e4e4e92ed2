"""The served studio told to end while a run goes on: it ends in order, the run does not, and the next studio takes it up."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from studio.jobs.processes import WorkerFolder, alive, end
from studio.workspace import Workspace
from tests.jobs.conftest import SHORT, draw_pictures

ROOT = Path(__file__).resolve().parents[2]
GRACE = 30.0  # seconds in which a studio that is told to end must be gone


class Served:
    """`lora-studio serve` as a process of its own."""

    def __init__(self, data: Path) -> None:
        command = [sys.executable, "-m", "studio", "serve", "--data", str(data), "--port", "0", "--no-browser"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stderr
        self.address = next(found.group() for line in self.process.stderr if (found := re.search(r"http://\S+", line)))

    def ask(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(f"{self.address}/api{path}", json.dumps(body).encode() if body else None, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)

    def until(self, what: Callable[[], object], seconds: float = 120.0) -> None:
        limit = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < limit, "waited in vain"
            time.sleep(0.1)


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    with Workspace.open(tmp_path / "data") as studio:
        studio.sets.import_folder("Circles", draw_pictures(tmp_path / "circles"))
    yield tmp_path / "data"
    state = WorkerFolder(tmp_path / "data" / "workers", "cpu").state()
    if state is not None:
        end(state.pid, state.started)


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_a_studio_told_to_end_leaves_its_run_to_the_next_one(data: Path) -> None:
    """SIGTERM, SIGHUP as of a closed terminal, and SIGKILL, one after another under one training."""
    studio = Served(data)
    id = studio.ask("/jobs/train", **{**SHORT, "images": "Circles", "name": "outlives", "steps": 100_000, "save_every": 1000})["id"]
    studio.until(lambda: studio.ask(f"/jobs/{id}")["step"] > 0)
    worker = WorkerFolder(data / "workers", "cpu").state()
    assert worker is not None
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
        studio.process.send_signal(number)
        code = studio.process.wait(GRACE)
        assert code == (0 if number != signal.SIGKILL else -signal.SIGKILL), number
        assert alive(worker.pid, worker.started), "the run went on"
        studio = Served(data)
        before = studio.ask(f"/jobs/{id}")
        assert before["state"] == "running"
        studio.until(lambda now=studio, before=before: now.ask(f"/jobs/{id}")["step"] > before["step"])
        now = WorkerFolder(data / "workers", "cpu").state()
        assert now is not None and (now.pid, now.started) == (worker.pid, worker.started), "no second worker"
    studio.ask(f"/jobs/{id}/cancel", now=True)
    studio.until(lambda: studio.ask(f"/jobs/{id}")["state"] == "cancelled")
    studio.process.send_signal(signal.SIGINT)
    studio.process.send_signal(signal.SIGINT)
    studio.process.wait(GRACE)
