"""Pictures to start a drawing from, over HTTP."""

import pytest
from starlette.testclient import TestClient

from studio.workspace import Workspace
from tests.api.conftest import png


def sent(client: TestClient, *contents: bytes) -> list[dict]:
    reply = client.post("/api/images/inputs", files=[("files", ("a.png", content)) for content in contents])
    assert reply.status_code == 201, reply.text
    return reply.json()["items"]


def test_a_picture_is_kept_once_by_its_content_and_comes_back(client: TestClient) -> None:
    one, other, again = sent(client, png((9, 9, 9), 96), png((8, 9, 9), 96), png((9, 9, 9), 96))
    assert one == again != other and one["name"].endswith(".png") and (one["width"], one["height"]) == (96, 96)
    assert client.get(one["url"]).content == png((9, 9, 9), 96)


def test_a_job_starts_from_it_at_its_shape_and_keeps_its_name(client: TestClient, workspace: Workspace) -> None:
    wide = sent(client, png((1, 2, 3), 256))[0]["name"]
    job = client.post("/api/jobs/generate", json={"init_image": wide, "mask": wide, "strength": 0.4}).json()
    settings = job["settings"]
    assert (settings["init_image"], settings["mask"], settings["width"], settings["height"]) == (wide, wide, 128, 128), "no larger than the base draws"
    named = client.post("/api/jobs/generate", json={"init_image": wide, "width": 64, "height": 96}).json()["settings"]
    assert (named["width"], named["height"]) == (64, 96)
    assert client.post(f"/api/jobs/{job['id']}/duplicate", json={"changes": {}}).json()["settings"]["init_image"] == wide
    manifest = next((workspace.layout.jobs / job["id"]).glob("job.json")).read_text()
    assert str(workspace.layout.inputs / wide) in manifest


@pytest.mark.parametrize("name", ["0" * 32 + ".png", "../studio.db", "%2e%2e%2fstudio.db", "x"])
def test_a_name_that_was_never_given_finds_nothing(client: TestClient, name: str) -> None:
    assert client.get(f"/api/images/inputs/{name}").status_code == 404
    reply = client.post("/api/jobs/generate", json={"init_image": name})
    assert reply.status_code == 422 and "neither a picture of the gallery" in reply.json()["error"]


def test_what_is_no_picture_is_refused(client: TestClient, workspace: Workspace) -> None:
    reply = client.post("/api/images/inputs", files=[("files", ("a.png", b"hello"))])
    assert reply.status_code == 422 and not list(workspace.layout.inputs.iterdir())
