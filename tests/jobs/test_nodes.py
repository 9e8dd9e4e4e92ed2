"""Several processes that hand out jobs of one queue, killed and started again: nothing is lost, and nothing runs twice."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import event
from starlette.testclient import TestClient

from studio import api
from studio.jobs.folder import JobFolder
from studio.jobs.queue import Dispatcher
from studio.library.models import JobRow
from studio.workspace import Workspace
from tests.jobs import node
from tests.postgres import Server


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "data"
    node.end_workers(tmp_path / "data")


def drained(studio: Workspace, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Wait until nothing is queued or running."""
    limit = time.monotonic() + seconds
    while studio.jobs.queue():
        assert time.monotonic() < limit, Counter(row.state for row in studio.jobs.list(limit=5000))
        meanwhile()
        time.sleep(0.2)


def ran_once(studio: Workspace, ids: list[str]) -> Counter[str]:
    """Check that every job ended well and was run by exactly one worker; how many each worker had."""
    rows = {row.id: row for row in studio.jobs.list(limit=5000)}
    assert sorted(rows) == sorted(ids)
    assert Counter(row.state for row in rows.values()) == {"finished": len(ids)}
    by: Counter[str] = Counter()
    for id in ids:
        [line] = (studio.layout.jobs / id / node.RAN).read_text().splitlines()
        assert [event.kind for event in JobFolder(studio.layout.jobs / id).read()[0]] == ["loading", "finished"]
        by[line.split()[0]] += 1
    return by


def through_two_nodes(data: Path, url: str, n: int, kills: int, seconds: float) -> Counter[str]:
    """`n` jobs by two processes with two workers each, one of which is killed and started again so often."""
    with Workspace.open(data) as studio:
        ids = [studio.jobs.submit(node.manifest(f"job-{i}")).id for i in range(n)]
        names = {"STUDIO_DATABASE_URL": url, "STUDIO_DEVICE": "cpu:0,cpu:1"}
        nodes = {name: node.start(data, STUDIO_NODE=name, **names) for name in ("one", "two")}
        left = [n - (i + 1) * n // (kills + 1) for i in range(kills)]

        def kill_some() -> None:
            waiting = studio.status().queued
            while left and waiting <= left[0]:
                left.pop(0)
                name = ("one", "two")[len(left) % 2]
                nodes[name].kill()
                nodes[name].wait()
                nodes[name] = node.start(data, STUDIO_NODE=name, **names)

        try:
            drained(studio, seconds, kill_some)
        finally:
            for process in nodes.values():
                process.kill()
                process.wait()
        assert not left
        return ran_once(studio, ids)


def test_two_processes_share_a_queue_and_no_job_runs_twice(data: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIO_DATABASE_URL", database_url)
    by = through_two_nodes(data, database_url, n=24, kills=2, seconds=120)
    assert len(by) == 4  # both nodes, both workers


@pytest.mark.long
def test_a_thousand_jobs_survive_restarts(data: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIO_DATABASE_URL", database_url)
    began = time.monotonic()
    by = through_two_nodes(data, database_url, n=1000, kills=10, seconds=500)
    print(f"\n1,000 jobs in {time.monotonic() - began:.0f} s, by worker: {sorted(by.values())}")
    assert len(by) == 4


def statements(studio: Workspace, act: Callable[[], object]) -> int:
    """How many the database is given meanwhile."""
    given: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        given.append(statement)

    event.listen(studio._db.engine, "before_cursor_execute", note)
    act()
    event.remove(studio._db.engine, "before_cursor_execute", note)
    return len(given)


def test_a_long_queue_is_listed_and_reordered_as_a_short_one_is(data: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In as many statements, however many wait."""
    monkeypatch.setenv("STUDIO_DATABASE_URL", database_url)
    with Workspace.open(data) as studio:
        client = TestClient(api.app(studio), base_url="http://127.0.0.1:7860")
        ids: list[str] = []
        counts = []
        for n in (10, 100):
            ids.extend(studio.jobs.submit(node.manifest(f"job-{i}")).id for i in range(len(ids), n))
            acts: dict[str, Callable[[], object]] = {
                "list": lambda: client.get("/api/jobs").json()["items"][9],
                "queue": lambda: studio.jobs.queue()[-1],
                "whole queue": lambda: client.get("/api/jobs/queue").json()["items"][9],
                "move": lambda: client.post(f"/api/jobs/{ids[-1]}/move", json={"place": 5}).raise_for_status(),
            }
            counts.append({name: statements(studio, act) for name, act in acts.items()})
            ids.insert(5, ids.pop())
        for id in (ids.pop(50), ids.pop(0)):
            counts.append({"cancel": statements(studio, lambda id=id: client.post(f"/api/jobs/{id}/cancel").raise_for_status())})
        assert counts[0] == counts[1] and counts[2] == counts[3], counts
        assert min(counts[0].values()) > 0, "they were counted"
        assert [row.id for row in studio.jobs.queue()] == ids
    with Workspace.open(data) as again:
        assert [row.id for row in again.jobs.queue()] == ids


def test_a_node_that_is_gone_leaves_its_jobs_to_another(data: Path, monkeypatch: pytest.MonkeyPatch, postgres: Server) -> None:
    monkeypatch.setenv("STUDIO_DATABASE_URL", postgres.database())
    with Workspace.open(data) as studio:
        id = studio.jobs.submit(node.manifest("left")).id
        gone, other = (Dispatcher(studio._db, studio.layout, lambda: [], node=name) for name in ("gone", "other"))
        with studio._db.write() as session:
            row = session.get_one(JobRow, id)
            row.state, row.node, row.device = "running", "gone", "cpu"
        assert gone.try_lead() and other.try_lead()
        other.tick()
        assert studio.jobs.show(id).node == "gone"  # as long as somebody hands out jobs there
        gone.release()
        other._looked = 0.0
        other.tick()
        assert studio.jobs.show(id).node == "other"
        other.release()
