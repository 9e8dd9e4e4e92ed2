from starlette.testclient import TestClient

from studio.workspace import Workspace

HEADERS = {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}


def test_a_page_hears_hello_and_then_what_changes(client: TestClient, workspace: Workspace) -> None:
    with client.websocket_connect("/api/stream", headers=HEADERS) as socket:
        hello = socket.receive_json()
        assert (hello["kind"], hello["boot"], "data" in hello["status"]) == ("hello", workspace.hub.boot, False)
        workspace.hub.publish("job1", event={"kind": "step", "step": 1, "total": 2})
        workspace.hub.publish("job1", row=None)
        first, second = socket.receive_json(), socket.receive_json()
        assert (first["kind"], first["event"]["step"], second["kind"]) == ("event", 1, "removed")


def test_who_comes_back_gets_what_was_missed_and_nothing_twice(client: TestClient, workspace: Workspace) -> None:
    for step in range(5):
        workspace.hub.publish("job1", event={"kind": "step", "step": step, "total": 5})
    with client.websocket_connect(f"/api/stream?after=3&boot={workspace.hub.boot}", headers=HEADERS) as socket:
        assert socket.receive_json()["kind"] == "hello"
        assert [socket.receive_json()["event"]["step"] for _ in range(2)] == [3, 4]


def test_after_a_restart_old_numbers_do_not_count(client: TestClient, workspace: Workspace) -> None:
    workspace.hub.publish("job1", row=None)
    with client.websocket_connect("/api/stream?after=68&boot=another", headers=HEADERS) as socket:
        hello = socket.receive_json()
        assert (hello["seq"], hello["boot"]) == (1, workspace.hub.boot)
        workspace.hub.publish("job2", row=None)
        assert socket.receive_json()["seq"] == 2


def test_a_change_by_one_page_reaches_the_others(client: TestClient) -> None:
    with client.websocket_connect("/api/stream", headers=HEADERS) as socket:
        socket.receive_json()
        client.post("/api/sets", json={"name": "new"})
        assert socket.receive_json()["what"] == "sets"
