"""A PostgreSQL server of the tests' own: a new cluster in a temporary folder, reached through a socket in it, ended with the tests."""

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# An unwritten page at a power cut is no concern of a cluster that lives for minutes
SETTINGS = {"fsync": "off", "listen_addresses": "", "max_connections": "60", "shared_buffers": "32MB", "lc_messages": "C"}


def programs() -> Path | None:
    """Where initdb and its like are: the newest that Debian put away, else wherever PATH has them."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    beside = shutil.which("initdb")
    return found[-1].parent if found else Path(beside).parent if beside else None


class Server:
    """A running cluster; `database` makes an empty database in it and returns the URL."""

    def __init__(self, folder: Path, bin: Path) -> None:
        self._folder = folder
        self._bin = bin

    def start(self) -> None:
        self._run("initdb", "-D", str(self._folder / "cluster"), "-U", "studio", "-A", "trust", "-E", "UTF8", "--no-sync", "--no-instructions")
        options = " ".join(["-k", str(self._folder), *(f"-c {name}={value!r}" for name, value in SETTINGS.items())])
        self._run("pg_ctl", "-D", str(self._folder / "cluster"), "-l", str(self._folder / "log.txt"), "-w", "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self._folder / "cluster"), "-m", "immediate", "stop")

    def restart(self) -> None:
        """As after a crash of the server: connections are cut, what was committed is there."""
        self._run("pg_ctl", "-D", str(self._folder / "cluster"), "-l", str(self._folder / "log.txt"), "-w", "-m", "fast", "restart")

    def database(self) -> str:
        name = f"t{secrets.token_hex(6)}"
        self._run("createdb", "-h", str(self._folder), "-U", "studio", name)
        return f"postgresql://studio@/{name}?host={self._folder}"

    def _run(self, program: str, *arguments: str) -> None:
        # The server refuses to run as root; there, the user that its package made takes over
        before = ["runuser", "-u", "postgres", "--"] if _root() else []
        done = subprocess.run([*before, str(self._bin / program), *arguments], cwd=self._folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{program}: {done.stderr or done.stdout}"


@contextmanager
def server() -> Iterator[Server]:
    """A new server; the test is skipped where PostgreSQL is not installed."""
    bin = programs()
    if bin is None:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is not installed; .ci/run installs it on Debian as root")
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a socket's path has at most 107 characters
    started = Server(folder, bin)
    try:
        if _root():
            shutil.chown(folder, "postgres")
        started.start()
        yield started
        started.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0
