import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from studio.api.guards import MAX_BODY
from studio.workspace import Workspace

OWN = "http://127.0.0.1:7860"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.nip.io", "localhost.evil", "2130706433", "localhost.", "0.0.0.0", "127.0.0.1:x", "[::2]:7860", "192.168.1.5"]
)
def test_a_foreign_host_name_is_not_answered(client: TestClient, host: str) -> None:
    reply = client.get("/api/status", headers={"host": host})
    assert (reply.status_code, set(reply.json())) == (400, {"error"})


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "LOCALHOST:1", "[::1]:7860"])
def test_own_host_names_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/api/status", headers={"host": host}).status_code == 200


FOREIGN = [
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:7861"},
    {"origin": "http://localhost:7860"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_another_page_changes_nothing(client: TestClient, workspace: Workspace, headers: dict[str, str]) -> None:
    before = len(workspace.sets.list())
    replies = [
        client.post("/api/sets", json={"name": "stolen"}, headers=headers),
        client.post("/api/sets", content=b'{"name": "stolen"}', headers={**headers, "content-type": "text/plain"}),
        client.delete("/api/sets/x", headers=headers),
        client.patch("/api/sets/x", json={}, headers=headers),
        client.post("/api/jobs/x/cancel", headers=headers),
    ]
    assert [reply.status_code for reply in replies] == [403] * 5
    assert len(workspace.sets.list()) == before


def test_own_page_and_plain_clients_may_act(client: TestClient) -> None:
    assert client.post("/api/sets", json={"name": "a"}, headers={"origin": OWN, "sec-fetch-site": "same-origin"}).status_code == 201
    assert client.post("/api/sets", json={"name": "b"}).status_code == 201


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999"])
def test_a_socket_from_another_page_is_closed(client: TestClient, origin: str) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/api/stream", headers={"origin": origin, "host": "127.0.0.1:7860"}) as socket:
        socket.receive_json()


def test_no_reply_lets_another_origin_read_or_frame_it(client: TestClient) -> None:
    for method, path in (("GET", "/api/sets"), ("OPTIONS", "/api/sets"), ("GET", "/nowhere"), ("GET", "/api/jobs/none")):
        headers = client.request(method, path, headers={"origin": "http://evil.example", "access-control-request-method": "POST"}).headers
        assert "access-control-allow-origin" not in headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "default-src 'self'" in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")


def test_a_body_over_the_limit_is_refused_with_and_without_its_length(client: TestClient) -> None:
    def endless():
        for _ in range(MAX_BODY // 65536 + 2):
            yield b" " * 65536

    assert client.post("/api/sets", content=b"x" * (MAX_BODY + 1), headers={"content-type": "application/json"}).status_code == 413
    assert client.post("/api/sets", content=endless(), headers={"content-type": "application/json"}).status_code == 413


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/api", "/api/none", "/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/monitoring"])
def test_there_is_nothing_where_others_offer_docs_or_files(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_deep_and_odd_json_is_one_line_not_a_crash(client: TestClient) -> None:
    for body in (b"[" * 50_000, b'{"name": NaN}', b'{"name": 1e400}', b'{"name": ' + b"9" * 5000 + b"}", b"\xff\xfe", b""):
        reply = client.post("/api/sets", content=body, headers={"content-type": "application/json"})
        assert reply.status_code in (400, 413, 422), body[:20]
        assert "\n" not in reply.json()["error"]
