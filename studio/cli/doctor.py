"""doctor: is everything there that the studio needs?"""

import argparse
import json
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from studio.cli.opening import opened
from studio.cli.output import emit, size
from studio.errors import RunError, StudioError

if TYPE_CHECKING:
    from studio.workspace import Workspace

MARKS = {"ok": "ok  ", "note": "note", "bad": "BAD "}
LOW_DISK, LOW_MEMORY = 5e9, 8e9  # bytes below which full-size models will not fit


@dataclass(frozen=True)
class Finding:
    check: str
    state: Literal["ok", "note", "bad"]
    words: str


def doctor(arguments: argparse.Namespace) -> int:
    findings: list[Finding] = []
    for finding in _findings(arguments):
        findings.append(finding)
        if arguments.json:
            emit(finding)
        else:
            print(f"{MARKS[finding.state]}  {finding.check:12} {finding.words}", flush=True)
    return 1 if any(finding.state == "bad" for finding in findings) else 0


def _findings(arguments: argparse.Namespace) -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}, {platform.system()} {platform.machine()}")
    yield from _environment()
    memory = psutil.virtual_memory()
    state: Literal["ok", "note"] = "note" if memory.total < LOW_MEMORY else "ok"
    yield Finding("memory", state, f"{size(memory.available)} free of {size(memory.total)}; {psutil.cpu_count()} processor threads")
    try:
        with opened(arguments) as workspace:
            yield from _studio(workspace)
    except StudioError as error:
        yield Finding("studio", "bad", str(error))
    yield _port(7860)


def _environment() -> Iterator[Finding]:
    """What torch says, asked in a process of its own: importing it takes seconds, and a broken driver may crash it."""
    try:
        found = subprocess.run([sys.executable, "-m", "studio.environment.verify"], capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        yield Finding("torch", "bad", "does not start within 180 s; the driver may hang")
        return
    if found.returncode != 0:
        lines = found.stderr.strip().splitlines() or [f"ends with code {found.returncode}"]
        yield Finding("torch", "bad", f"cannot be imported: {lines[-1][:200]}")
        return
    facts: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    if facts["broken"]:
        yield Finding("packages", "bad", f"not whole: {', '.join(facts['broken'])}; delete the folder .venv and start launch.py again")
        return
    yield Finding("packages", "ok", "every installed file is whole")
    words = f"{facts['torch']} on {facts['device']}"
    yield Finding("torch", "note" if facts["note"] else "ok", f"{words}. {facts['note']}" if facts["note"] else words)


def _studio(workspace: "Workspace") -> Iterator[Finding]:
    status = workspace.status()
    yield Finding("data folder", "ok", f"{status.data}, can be written")
    yield Finding("disk", "note" if status.disk_free < LOW_DISK else "ok", f"{size(status.disk_free)} free of {size(status.disk_total)}")
    yield Finding("database", "ok", f"opens; {len(status.running)} jobs running, {status.queued} waiting")
    if status.trouble:
        yield Finding("queue", "bad", status.trouble)
    try:
        yield Finding("jobs", "ok", workspace.reach())
    except RunError as error:
        yield Finding("jobs", "bad", str(error))
    bases = workspace.bases.list()
    for base in bases:
        if base.problem:
            yield Finding("base", "bad", f"{base.name}: {base.problem}")
    usable = [base.name for base in bases if not base.problem]
    yield Finding("bases", "ok" if usable else "bad", ", ".join(usable) or "none can be used")
    git = shutil.which("git")
    root = Path(__file__).parents[2]
    if git is None and (root / ".git").exists():
        yield Finding("git", "note", "not found; the checkout cannot be updated")


def _port(port: int) -> Finding:
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", port)) == 0
    return Finding("port", "note" if taken else "ok", f"{port} is {'taken, by a running studio or another program' if taken else 'free'}")
