"""What must hold after any fault, once a studio has been opened on the data folder again."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

from safetensors.torch import load_file

from studio.jobs.folder import JobFolder
from studio.jobs.processes import alive
from studio.library import adapters
from studio.library.models import AdapterRow
from studio.metadata import read_header
from studio.training import checkpoint
from studio.workspace import Workspace

LEFTOVER = re.compile(r"\.part|\.old-|\.new\.safetensors$|\.tmp")


def check(studio: Workspace) -> None:
    """Raise AssertionError naming the invariant that is broken."""
    root = studio.layout.root
    _files_are_what_was_acknowledged(studio)
    with closing(sqlite3.connect(studio.layout.database)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)], "I3"
        assert db.execute("PRAGMA foreign_key_check").fetchall() == [], "I3"
    jobs = studio.jobs.list(limit=10_000)
    assert {path.name for path in studio.layout.jobs.iterdir()} == {job.id for job in jobs}, "I4: folders and rows"
    for job in jobs:
        if job.state == "running":
            claim = JobFolder(studio.layout.jobs / job.id).claim()
            assert claim and alive(claim.pid, claim.started), f"I5: {job.name} runs without a worker"
        if job.state in ("interrupted", "failed"):
            assert job.message and job.remedy and "\n" not in job.message + job.remedy, f"I8: {job.message!r} {job.remedy!r}"
    if not any(job.state == "running" for job in jobs):
        left = [path for path in root.rglob("*") if LEFTOVER.search(path.name) and path.name != "studio.db.part"]
        assert left == [], f"I9: {left}"


def _files_are_what_was_acknowledged(studio: Workspace) -> None:
    for path in studio.layout.jobs.iterdir():
        for told in JobFolder(path).checkpoints():
            stored = checkpoint.verify(path / told.path)
            assert stored.sha256 == told.sha256, f"I1: {told.path}"
            assert {file.name for file in stored.path.iterdir()} == {*stored.files, checkpoint.MANIFEST}, f"I9: files that {told.path} disowns"
        for exported in JobFolder(path).exports():
            assert read_header(path / exported.path).shapes, "I1"
    with studio._db.read() as session:
        rows = list(session.query(AdapterRow))
    for row in rows:
        assert adapters.sha256(adapters.file_of(studio.layout, row)) == row.sha256, f"I1: {row.name}"
    assert {path.name for path in studio.layout.adapters.iterdir()} == {row.id for row in rows}, "I4: adapters"


def result(studio: Workspace, id: str) -> dict[str, bytes]:
    """Every tensor of a run's last adapter and optimizer memory: what a resumed run must share bit for bit with an unbroken one."""
    last = JobFolder(studio.layout.jobs / id).checkpoints()[-1]
    folder: Path = studio.layout.jobs / id / last.path
    tensors = {f"{name}/{key}": value for name in (checkpoint.ADAPTER, checkpoint.OPTIMIZER) for key, value in load_file(folder / name).items()}
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
