"""pip as a subprocess, with its progress on one line."""

import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from studio.environment.errors import explain

RAW = re.compile(r"Progress (\d+) of (\d+)")
NAMED = re.compile(r"(?:Collecting|Obtaining|Processing|Downloading) (\S+)")
INSTALLING = "Installing collected packages: "


class Progress:
    """One line per phase on a terminal, redrawn as it goes on; elsewhere a plain line every ten seconds."""

    def __init__(self, stream: TextIO, phases: int) -> None:
        self._stream = stream
        self._phases = phases
        self._phase = 0
        self._title = ""
        self._begun = self._spoken = time.monotonic()
        self._live = stream.isatty()

    def phase(self, title: str) -> None:
        self._phase += 1
        self._title = f"[{self._phase}/{self._phases}] {title}"
        self._begun = self._spoken = time.monotonic()
        self._stream.write(f"  {self._title}" if self._live else f"  {self._title}\n")
        self._stream.flush()

    def say(self, words: str) -> None:
        now = time.monotonic()
        if self._live:
            self._stream.write("\r" + self._fit(f"  {self._title}  {now - self._begun:3.0f} s  {words}"))
        elif now - self._spoken >= 10:
            self._spoken = now
            self._stream.write(f"        {now - self._begun:3.0f} s  {words}\n")
        self._stream.flush()

    def done(self, words: str = "") -> None:
        seconds = f"{time.monotonic() - self._begun:.0f} s"
        if self._live:
            self._stream.write("\r" + self._fit(f"  {self._title}  {seconds}  {words}") + "\n")
        else:
            self._stream.write(f"        {seconds}  {words or 'done'}\n")
        self._stream.flush()

    def _fit(self, line: str) -> str:
        import shutil

        width = shutil.get_terminal_size().columns - 1
        return line[:width].ljust(width)


class Activity:
    """What pip is doing, in a few words, read from its output lines."""

    def __init__(self, packages: Path) -> None:
        self._packages = packages
        self._subject = ""
        self._names = 0
        self._total = 0
        self._before = 0
        self.words = "looking up packages"

    def read(self, line: str) -> None:
        raw = RAW.match(line)
        if raw:
            done, total = int(raw[1]) / 1e6, int(raw[2]) / 1e6
            self.words = f"downloading {self._subject}, {done:.0f} of {total:.0f} MB"
        elif line.startswith(INSTALLING):
            self._total = line.count(",") + 1
            self._before = self._installed()
            self.tick()
        elif named := NAMED.match(line.strip()):
            self._subject = re.split(r"[-=<>\[]", Path(named[1]).name)[0]
            self.words = f"fetching {self._subject}"

    def tick(self) -> None:
        """Count what is on disk while pip says nothing: it installs without a word."""
        if self._total:
            self.words = f"installing, {min(self._installed() - self._before, self._total)} of {self._total} packages"

    def _installed(self) -> int:
        return sum(1 for _ in self._packages.glob("*.dist-info"))


def install(python: Path, arguments: Sequence[str], progress: Progress, *, root: Path, bar: str = "raw") -> None:
    """`pip install ARGUMENTS` in the environment of `python`. Raises SetupError in one line; all output goes to .setup/log.txt."""
    log = root / ".setup" / "log.txt"
    command = [str(python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--progress-bar", bar, *arguments]
    with log.open("a", encoding="utf-8") as book:
        book.write(f"\n$ {' '.join(command)}\n")
        book.flush()
        output, code = _follow(command, _environ(root), progress, Activity(_site_packages(python)))
        book.write("".join(line for line in output if not RAW.match(line)))
    if code != 0:
        raise explain("".join(output), root, log)


def _follow(command: list[str], environ: dict[str, str], progress: Progress, activity: Activity) -> tuple[list[str], int]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace", env=environ)
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    output: list[str] = []
    try:
        while True:
            try:
                line = lines.get(timeout=0.5)
            except queue.Empty:
                activity.tick()
            else:
                if line is None:
                    break
                output.append(line)
                activity.read(line)
            progress.say(activity.words)
    except KeyboardInterrupt:
        process.wait(timeout=30)  # pip heard it too and rolls back
        raise
    return output, process.wait()


def _environ(root: Path) -> dict[str, str]:
    """pip's environment: its own settings except those that would install elsewhere; temporary files on the disk that must hold the result anyway."""
    unwanted = {"PYTHONHOME", "PYTHONPATH", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_CONSTRAINT", "PIP_REQUIREMENT"}
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {**kept, "PIP_USER": "0", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "TMPDIR": str(root / ".setup"), "TEMP": str(root / ".setup")}


def _site_packages(python: Path) -> Path:
    home = python.parent.parent
    if sys.platform == "win32":
        return home / "Lib" / "site-packages"
    return next(iter(sorted(home.glob("lib/python3.*/site-packages"))), home / "lib")
