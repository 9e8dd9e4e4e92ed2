"""The command line as a person or a script uses it: a process of its own on a data folder of its own.

Most are forked from one that has everything loaded, and most jobs are worked on by a studio of the test's on that folder, as beside
`lora-studio serve`. test_whole_way.py also has commands that begin from nothing and host their queue and worker themselves.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from studio.workspace import Workspace
from tests.forked import Forks

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 400.0


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """stdout as JSON lines; anything else there is an error."""
        return [json.loads(line) for line in self.out.splitlines()]


Command = Callable[..., Said]


@dataclass(frozen=True)
class CommandLine:
    """`forks`: what commands are forked from; without, they begin from nothing."""

    data: Path
    forks: Forks | None = None

    def __call__(self, *arguments: str | Path, cwd: Path | None = None) -> Said:
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "STUDIO_DATA": str(self.data)}
        words = [str(argument) for argument in arguments]
        if self.forks and self.forks.context:
            return Said(*self.forks.command(words, cwd or Path.cwd(), environ, SECONDS))
        command = [sys.executable, "-P", "-m", "studio", *words]
        found = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=SECONDS, check=False)
        return Said(found.returncode, found.stdout, found.stderr)


@pytest.fixture
def studio(tmp_path: Path, forks: Forks) -> CommandLine:
    """Commands that need no worker."""
    return CommandLine(tmp_path / "data", forks)


@pytest.fixture
def hosted(studio: CommandLine, forks: Forks) -> Iterator[CommandLine]:
    """Commands beside a studio that hands out their jobs."""
    with hosting(studio.data, forks):
        yield studio


@contextlib.contextmanager
def hosting(data: Path, forks: Forks) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, forks.as_workers():
        patch.setenv("STUDIO_DEVICE", "cpu")
        with Workspace.open(data) as host:
            host.start()
            yield


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five small pictures with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(5):
        image = Image.new("RGB", (64, 64), (20 + 30 * i, 60, 160))
        ImageDraw.Draw(image).ellipse((8 + 3 * i, 10, 40 + 4 * i, 50), fill=(250, 240, 30 * i))
        image.save(folder / f"sun-{i}.png")
        (folder / f"sun-{i}.txt").write_text(f"a yellow sun, number {i}")
    return folder
