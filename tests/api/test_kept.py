"""What many pages ask for is made once, is never older than a change of the queue, and is not sent to who has it."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from studio import api
from studio.api.kept import Kept
from studio.workspace import Workspace
from tests.jobs import node

TOGETHER = 3.0  # seconds within which two tabs must agree


def test_a_hundred_who_ask_at_once_are_answered_by_one_reading() -> None:
    made = []

    def make() -> list[int]:
        made.append(1)
        time.sleep(0.05)
        return [len(made)]

    async def ask() -> list[object]:
        kept = Kept(lambda: 0, seconds=60.0)
        return await asyncio.gather(*(kept.value("key", make) for _ in range(100)))

    assert asyncio.run(ask()) == [[1]] * 100 and len(made) == 1


def test_a_new_version_and_the_time_make_it_anew() -> None:
    version, made = [0], []

    def make() -> int:
        made.append(1)
        return len(made)

    async def ask() -> list[object]:
        kept = Kept(lambda: version[0], seconds=0.2)
        found = [await kept.value("key", make), await kept.value("key", make)]
        version[0] += 1
        found.append(await kept.value("key", make))
        await asyncio.sleep(0.25)
        return [*found, await kept.value("key", make)]

    assert asyncio.run(ask()) == [1, 1, 2, 3]


def test_a_reading_that_fails_is_told_and_not_kept() -> None:
    def broken() -> None:
        raise OSError("no")

    async def ask() -> object:
        kept = Kept(lambda: 0)
        with pytest.raises(OSError, match="no"):
            await kept.value("key", broken)
        return await kept.value("key", lambda: 1)

    assert asyncio.run(ask()) == 1


def test_who_has_the_list_gets_it_again_only_when_it_changed(client: TestClient, workspace: Workspace) -> None:
    id = workspace.jobs.submit(node.manifest("one")).id
    for path in ("/api/jobs", "/api/jobs/queue"):
        first = client.get(path)
        again = client.get(path, headers={"if-none-match": first.headers["etag"]})
        assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
        assert [row["id"] for row in first.json()["items"]] == [id]
        workspace.jobs.prioritise(id, workspace.jobs.show(id).priority + 1)
        changed = client.get(path, headers={"if-none-match": first.headers["etag"]})
        assert changed.status_code == 200 and changed.json()["items"][0]["priority"] == workspace.jobs.show(id).priority


def test_what_one_does_is_in_the_next_answer(client: TestClient, workspace: Workspace) -> None:
    """However often the list is asked for in between: submitted, moved, held back, let go, cancelled, removed, brought back."""

    def shown() -> list[tuple[str, str]]:
        queue = [(row["id"], row["state"]) for row in client.get("/api/jobs/queue").json()["items"]]
        assert queue == [(row.id, row.state) for row in workspace.jobs.queue()]
        listed = [(row["id"], row["state"]) for row in client.get("/api/jobs").json()["items"]]
        assert listed == [(row.id, row.state) for row in workspace.jobs.list()]
        assert client.get("/api/status").json()["queued"] == len(queue)
        return queue

    assert shown() == []
    first, second = (workspace.jobs.submit(node.manifest(name)).id for name in ("first", "second"))
    assert shown() == [(first, "queued"), (second, "queued")]
    client.post(f"/api/jobs/{second}/move", json={"place": 0})
    assert shown() == [(second, "queued"), (first, "queued")]
    client.post(f"/api/jobs/{second}/pause")
    assert shown() == [(first, "queued")]
    client.post(f"/api/jobs/{second}/resume")
    client.post(f"/api/jobs/{first}/cancel")
    assert shown() == [(second, "queued")]
    token = client.delete(f"/api/jobs/{first}").json()["token"]
    assert shown() == [(second, "queued")] and len(workspace.jobs.list()) == 1
    client.post("/api/jobs/restore", json={"token": token})
    assert shown() == [(second, "queued")] and len(workspace.jobs.list()) == 2


@pytest.fixture(params=[False, True], ids=["one studio", "two studios"])
def tabs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TestClient, TestClient, Workspace]]:
    """Two clients, of one server or of two on one data folder, whose queues run but have no device to give."""
    monkeypatch.setattr("studio.workspace.workspace.devices", list)
    with Workspace.open(tmp_path / "data") as one, Workspace.open(tmp_path / "data") as two:
        first = TestClient(api.app(one), base_url="http://127.0.0.1:7860")
        second = TestClient(api.app(two), base_url="http://127.0.0.1:7860") if request.param else first
        with first:
            if request.param:
                two.start()
            yield first, second, one


class Tab:
    """What a page knows of the queue: its list, and what the stream told since."""

    def __init__(self, client: TestClient) -> None:
        self.rows: dict[str, dict] = {}
        self._socket = client.websocket_connect("/api/stream", headers={"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"})
        self._stream = self._socket.__enter__()
        assert self._stream.receive_json()["kind"] == "hello"
        self.rows = {row["id"]: row for row in client.get("/api/jobs/queue").json()["items"]}
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            while message := self._stream.receive_json():
                if message["kind"] == "job":
                    self.rows[message["job"]["id"]] = message["job"]
                if message["kind"] == "removed":
                    self.rows.pop(message["job"], None)
        except Exception:  # the socket was closed under the thread; what that raises is the test client's affair
            return

    def queue(self) -> list[str]:
        waiting = [row for row in self.rows.values() if row["state"] == "queued"]
        return [row["id"] for row in sorted(waiting, key=lambda row: (-row["priority"], row["queued"], row["id"]))]

    def close(self) -> None:
        self._socket.__exit__(None, None, None)


def test_two_tabs_agree_within_three_seconds(tabs: tuple[TestClient, TestClient, Workspace]) -> None:
    first, second, studio = tabs
    ids = [studio.jobs.submit(node.manifest(f"job-{i}")).id for i in range(4)]
    views = [Tab(first), Tab(second)]
    a, b, c, d = ids

    def agree(expected: list[str]) -> None:
        limit = time.monotonic() + TOGETHER
        while not all(view.queue() == expected for view in views):
            assert time.monotonic() < limit, [view.queue() for view in views]
            time.sleep(0.02)

    agree([a, b, c, d])
    first.post(f"/api/jobs/{d}/move", json={"place": 1})
    agree([a, d, b, c])
    second.post(f"/api/jobs/{a}/cancel")
    agree([d, b, c])
    second.post(f"/api/jobs/{c}/priority", json={"priority": 5})
    agree([c, d, b])
    first.post(f"/api/jobs/{b}/pause")
    agree([c, d])
    new = studio.jobs.submit(node.manifest("new")).id
    agree([c, d, new])
    for view in views:
        view.close()
