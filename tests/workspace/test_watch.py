"""What watchers hear of rows, however late they come."""

import time
from pathlib import Path
from typing import Any

from sqlalchemy import update

from studio.library.models import JobRow
from studio.workspace import Workspace
from studio.workspace.hub import Hub
from studio.workspace.jobs import record
from studio.workspace.watch import Watch
from tests.jobs import node


def rows(hub: Hub, seq: int) -> dict[str, Any]:
    return {message["job"]: message["row"]["state"] for message in hub.since(seq) if message.get("row")}


def stamp(studio: Workspace, id: str, moment: float) -> None:
    """As if written by whoever took that moment for now."""
    with studio._db.write() as session:
        session.execute(update(JobRow).where(JobRow.id == id).values(updated=moment))


def test_a_row_that_came_long_after_its_stamp_is_heard(tmp_path: Path) -> None:
    """Its writer waited for the database, or is another machine whose clock is behind."""
    with Workspace.open(tmp_path / "data") as studio:
        hub = Hub()
        watch = Watch(studio._db, studio.layout, hub, record)
        watch.look()
        first = studio.jobs.submit(node.manifest("first")).id
        watch.look()
        assert rows(hub, 0) == {first: "queued"}
        late = studio.jobs.submit(node.manifest("late")).id
        stamp(studio, late, time.time() - 45)
        seen = hub.seq
        watch.look()
        assert rows(hub, seen) == {late: "queued"}
        seen = hub.seq
        watch.look()
        assert hub.seq == seen, "nothing is told twice"


def test_what_was_there_before_is_not_told_as_news(tmp_path: Path) -> None:
    """Pages load it with their lists; what changes of it from then on is told."""
    with Workspace.open(tmp_path / "data") as studio:
        before = studio.jobs.submit(node.manifest("before")).id
        hub = Hub()
        watch = Watch(studio._db, studio.layout, hub, record)
        watch.look()
        assert hub.seq == 0
        studio.jobs.prioritise(before, 3)
        watch.look()
        assert rows(hub, 0) == {before: "queued"}


def test_more_rows_than_one_question_takes_are_all_heard(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("studio.workspace.watch.AT_ONCE", 2)
    with Workspace.open(tmp_path / "data") as studio:
        hub = Hub()
        watch = Watch(studio._db, studio.layout, hub, record)
        made = [studio.jobs.submit(node.manifest(f"job-{i}")).id for i in range(5)]
        watch.look()
        assert list(rows(hub, 0)) == made
