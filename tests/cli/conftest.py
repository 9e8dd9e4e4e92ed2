"""The command line as a person or a script uses it: a process of its own on a data folder of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]


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
    data: Path

    def __call__(self, *arguments: str | Path, cwd: Path | None = None) -> Said:
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "STUDIO_DATA": str(self.data)}
        command = [sys.executable, "-P", "-m", "studio", *map(str, arguments)]
        found = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=400, check=False)
        return Said(found.returncode, found.stdout, found.stderr)


@pytest.fixture
def studio(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path / "data")


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
