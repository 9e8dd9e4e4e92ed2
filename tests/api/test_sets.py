from pathlib import Path

import pytest
from starlette.testclient import TestClient

from studio.workspace import Workspace

HOSTILE = "<img src=x onerror=alert(1)> ${alert(2)} \u202e.png"


def test_pictures_come_in_with_captions_and_each_reject_says_why(client: TestClient, picture: bytes) -> None:
    id = client.post("/api/sets", json={"name": "mixed", "trigger": "thing"}).json()["id"]
    files = [("files", ("good.png", picture)), ("files", ("good.txt", b"a thing on a table")), ("files", ("page.html", b"<script>1</script>"))]
    files.append(("files", ("cut.png", picture[:60])))
    reply = client.post(f"/api/sets/{id}/pictures", files=files).json()
    assert "cut.png" in [item["name"] for item in reply["rejected"]]
    assert all(item["message"] and "\n" not in item["message"] for item in reply["rejected"])
    shown = client.get(f"/api/sets/{id}").json()
    assert [(item["caption"], item["width"]) for item in shown["pictures"]] == [("a thing on a table", 96)]


def test_a_caption_is_written_and_read_back(client: TestClient, filled: str) -> None:
    shown = client.get(f"/api/sets/{filled}").json()["pictures"]
    name = shown[1]["name"]
    client.patch(f"/api/sets/{filled}/pictures/{name}", json={"caption": " <b>bold</b> ${1} "})
    assert {item["name"]: item["caption"] for item in client.get(f"/api/sets/{filled}").json()["pictures"]}[name] == "<b>bold</b> ${1}"


def test_pictures_and_thumbnails_are_served_as_pictures(client: TestClient, filled: str) -> None:
    item = client.get(f"/api/sets/{filled}").json()["pictures"][0]
    whole, small = client.get(item["url"]), client.get(item["thumbnail"], params={"side": 64})
    assert (whole.headers["content-type"], small.headers["content-type"]) == ("image/png", "image/webp")
    assert len(small.content) < len(whole.content) + 1000


def test_a_removed_set_and_a_removed_picture_come_back(client: TestClient, filled: str) -> None:
    name = client.get(f"/api/sets/{filled}").json()["pictures"][0]["name"]
    token = client.delete(f"/api/sets/{filled}/pictures/{name}").json()["token"]
    assert name not in [item["name"] for item in client.get(f"/api/sets/{filled}").json()["pictures"]]
    assert client.post("/api/sets/restore", json={"token": token}).json()["pictures"] == 2
    token = client.delete(f"/api/sets/{filled}").json()["token"]
    assert client.get(f"/api/sets/{filled}").status_code == 404
    assert client.post("/api/sets/restore", json={"token": token}).json()["pictures"] == 2


def test_sample_sets_are_there_with_covers_and_cannot_be_changed(client: TestClient, picture: bytes) -> None:
    samples = [one for one in client.get("/api/sets").json()["items"] if one["builtin"]]
    assert len(samples) >= 3
    assert all(client.get(one["cover"]).status_code == 200 for one in samples)
    reply = client.post(f"/api/sets/{samples[0]['id']}/pictures", files=[("files", ("a.png", picture))])
    assert reply.status_code == 422
    assert samples[0]["name"] in reply.json()["error"]


TRAVERSALS = [
    "../set.json",
    "..%2fset.json",
    "%2e%2e%2fset.json",
    "..%252fset.json",
    "..\\set.json",
    "..;/set.json",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "a%00.png",
]


@pytest.mark.parametrize("attack", TRAVERSALS)
def test_no_name_walks_out_of_a_set_or_a_job(client: TestClient, filled: str, attack: str) -> None:
    for path in (
        f"/api/sets/{filled}/pictures/{attack}",
        f"/api/sets/{attack}",
        f"/api/jobs/{attack}/files/log.txt",
        f"/api/images/{attack}/file",
        f"/studio-assets/1/{attack}",
    ):
        reply = client.get(path)
        assert reply.status_code in (404, 405), path
        assert "root:" not in reply.text


def test_a_link_out_of_a_set_is_not_followed(client: TestClient, workspace: Workspace, filled: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    (workspace.layout.sets / filled / "link.png").symlink_to(secret)
    assert client.get(f"/api/sets/{filled}/pictures/link.png").status_code == 404


def test_hostile_names_stay_names(client: TestClient, picture: bytes) -> None:
    made = client.post("/api/sets", json={"name": HOSTILE[:-4], "trigger": "<script>"}).json()
    assert client.post(f"/api/sets/{made['id']}/pictures", files=[("files", (HOSTILE, picture))]).status_code == 200
    shown = client.get(f"/api/sets/{made['id']}").json()
    assert shown["trigger"] == "<script>"
    assert [client.get(item["url"]).status_code for item in shown["pictures"]] == [200]


def test_nothing_of_an_upload_stays_in_the_temporary_folder(client: TestClient, workspace: Workspace, filled: str) -> None:
    assert [path.name for path in workspace.layout.tmp.iterdir() if path.name.startswith("upload-")] == []


def test_an_empty_upload_and_unknown_ids_are_one_line_errors(client: TestClient, filled: str) -> None:
    for reply in (client.post(f"/api/sets/{filled}/pictures", files={}), client.get("/api/sets/none"), client.post("/api/sets", json={"name": ""})):
        assert reply.status_code in (404, 422)
        assert reply.json()["error"] and "\n" not in reply.json()["error"]
