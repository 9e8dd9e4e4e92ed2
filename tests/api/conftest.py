"""A studio over a new data folder, asked in-process; its queue is not started, so that jobs stay where they are put."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from studio import api
from studio.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.open(tmp_path / "data") as opened:
        yield opened


@pytest.fixture
def client(workspace: Workspace) -> TestClient:
    return TestClient(api.app(workspace), base_url="http://127.0.0.1:7860", raise_server_exceptions=False)


def png(colour: tuple[int, int, int] = (200, 40, 40), side: int = 96) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def picture() -> bytes:
    return png()


@pytest.fixture
def filled(client: TestClient) -> str:
    """The id of a set with two pictures, one with a caption."""
    id = client.post("/api/sets", json={"name": "cats", "trigger": "mycat"}).json()["id"]
    files = [("files", ("a.png", png((1, 2, 3)))), ("files", ("b.png", png((200, 2, 3)))), ("files", ("a.txt", b"a red square"))]
    assert client.post(f"/api/sets/{id}/pictures", files=files).json()["accepted"] >= 2
    return id
