"""A database that is not one any more: set aside, rebuilt, said in one sentence."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from studio.errors import StudioError
from studio.library.database import BUSY_SECONDS
from studio.library.layout import Layout
from studio.library.repair import set_aside
from studio.workspace import Workspace
from tests.faults import invariants
from tests.faults.conftest import Ground
from tests.jobs import node


@pytest.mark.parametrize("where", ["head", "middle"])
def test_a_damaged_database_is_rebuilt_from_the_folders(ground: Ground, where: str) -> None:
    id = ground.train(steps=1)
    assert ground.until_ended(id) == "finished"
    ground.close()
    before = ground.studio.layout.database.read_bytes()
    start = 0 if where == "head" else len(before) // 4
    ground.studio.layout.database.write_bytes(before[:start] + b"\xa5" * (len(before) // 2) + before[start + len(before) // 2 :])
    ground.open()
    assert "database was damaged and is rebuilt" in ground.studio.status().trouble and len(list(ground.data.glob("studio.db.damaged-*"))) == 1
    assert ground.until_ended(id) == "finished"
    assert [row.run for row in ground.studio.library.list()] == [id] and "Circles" in [row.name for row in ground.studio.sets.list()]
    invariants.check(ground.studio)


def test_a_sound_database_is_left_alone(tmp_path: Path) -> None:
    Workspace.open(tmp_path).close()
    layout = Layout(tmp_path)
    assert set_aside(layout.database, tmp_path / "lock") == "" and layout.database.is_file()


def test_damage_under_a_studio_that_runs_is_told_and_mended_by_a_restart(ground: Ground) -> None:
    id = ground.train(steps=1)
    assert ground.until_ended(id) == "finished"
    ground.close()
    ground.studio = Workspace.open(ground.data)
    file = ground.studio.layout.database
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = file.read_bytes()
    with open(file, "r+b") as written:  # in place, as a disk does it: the studio keeps its handle
        written.seek(100)
        written.write(b"\xa5" * (len(before) - 100))
    ground.studio._db.engine.dispose()  # what was read before is forgotten, as after some minutes
    with pytest.raises(StudioError, match=r"damaged.*start it again"):
        ground.studio.jobs.list()
    ground.studio._db.close()
    ground.open()
    assert ground.until_ended(id) == "finished"
    invariants.check(ground.studio)


@contextlib.contextmanager
def locked(database: Path, seconds: float) -> Iterator[None]:
    """Another program writes for so long."""
    ready = threading.Event()

    def hold() -> None:
        with closing(sqlite3.connect(database, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            ready.set()
            time.sleep(seconds)
            db.execute("ROLLBACK")

    other = threading.Thread(target=hold)
    other.start()
    ready.wait()
    yield
    other.join()


WAITS = [pytest.param(1.5, 0.3, 6.0, id="seconds"), pytest.param(BUSY_SECONDS, 3.0, 60.0, id="a minute", marks=pytest.mark.long)]


@pytest.mark.parametrize(("busy", "short", "long"), WAITS)
def test_a_database_that_another_program_locks_loses_no_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: float, short: float, long: float) -> None:
    """A short lock is waited for; a long one is told in a sentence, and the queue goes on by itself when it ends."""
    monkeypatch.setattr("studio.library.database.BUSY_SECONDS", busy)
    monkeypatch.setattr("studio.workspace.workspace.devices", list)
    with Workspace.open(tmp_path / "data") as studio:
        studio.start()
        accepted = []
        with locked(studio.layout.database, short):
            accepted.append(studio.jobs.submit(node.manifest("waited")).id)
        with locked(studio.layout.database, long):
            began = time.monotonic()
            with pytest.raises(StudioError, match="locked by another program; nothing was changed"):
                studio.jobs.submit(node.manifest("refused"))
            assert time.monotonic() - began > busy - 1, "it was waited for"
            assert [row.id for row in studio.jobs.queue()] == accepted, "reading goes on"
        accepted.append(studio.jobs.submit(node.manifest("after")).id)
        assert [row.id for row in studio.jobs.queue()] == accepted
        limit = time.monotonic() + 20
        while studio.status().trouble or not studio.status().dispatching:
            assert time.monotonic() < limit, studio.status().trouble
            time.sleep(0.05)
        invariants.check(studio)
