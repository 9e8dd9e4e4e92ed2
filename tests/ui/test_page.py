"""The page as served, without a browser."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from studio.errors import InputError
from studio.ui import assets
from studio.workspace import Workspace

ROOT = Path(__file__).parents[2]
JS = sorted((assets.FOLDER / "js").glob("*.js"))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    from studio import api, ui

    with Workspace.open(tmp_path_factory.mktemp("page") / "data") as workspace:
        yield TestClient(ui.mount(api.app(workspace), workspace), base_url="http://127.0.0.1:7860", follow_redirects=False)


def test_serving_the_page_never_imports_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from studio import api, ui
from studio.workspace import Workspace
with Workspace.open(Path({str(tmp_path)!r})) as workspace:
    ui.mount(api.app(workspace), workspace)
heavy = [name for name in ('torch', 'diffusers', 'transformers', 'peft') if name in sys.modules]
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_no_call_of_the_page_waits_for_gradios_queue_which_seldom_looks(tmp_path: Path) -> None:
    from studio.ui.page import page

    with Workspace.open(tmp_path / "data") as workspace:
        blocks = page(workspace)
    calls = [call for call in blocks.fns.values() if call.fn is not None]
    assert calls and not [call.api_name for call in calls if call.queue is not False]
    assert blocks._queue.sleep_when_free >= 1


def test_the_first_answer_leads_to_the_theme_that_was_chosen(client: TestClient) -> None:
    assert client.get("/").headers["location"] == "/?__theme=dark"
    assert client.get("/", headers={"cookie": "studio_theme=light"}).headers["location"] == "/?__theme=light"
    assert client.get("/", headers={"cookie": "studio_theme=javascript"}).headers["location"] == "/?__theme=dark"


def test_the_page_brings_our_style_sheets_and_is_guarded(client: TestClient) -> None:
    reply = client.get("/?__theme=dark")
    links = re.findall(r'<link rel="stylesheet" href="(/studio-assets/[^"]+)">', reply.text)
    assert [Path(link).stem for link in links] == list(assets.CSS)
    assert all(client.get(link).status_code == 200 for link in links)
    assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
    assert client.get("/?__theme=dark", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


@pytest.mark.parametrize(
    "path", ["/gradio_api/upload", "/gradio_api/proxy=http://127.0.0.1", "/gradio_api/file=/etc/passwd", "/monitoring", "/docs", "/openapi.json"]
)
def test_routes_of_gradio_that_the_page_needs_not_are_closed(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404
    assert client.post(path).status_code in (404, 405)


def test_gradio_lets_no_other_page_in(client: TestClient) -> None:
    for path in ("/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/cancel", "/gradio_api/component_server"):
        reply = client.post(path, json={}, headers={"origin": "http://evil.example"})
        assert reply.status_code == 403
        assert "access-control-allow-origin" not in reply.headers


def test_assets_may_be_kept_for_good_and_nothing_else_is_there(client: TestClient) -> None:
    reply = client.get(assets.address("fonts/inter-latin-400-normal.woff2"))
    assert (reply.status_code, "immutable" in reply.headers["cache-control"]) == (200, True)
    for path in ("../../pyproject.toml", "..%2f..%2fpyproject.toml", "none.js"):
        assert client.get(f"/studio-assets/1/{path}").status_code == 404
    assert client.get("/studio-docs/guide.md").status_code == 404


def test_every_picture_that_a_help_page_names_is_served(client: TestClient) -> None:
    texts = "".join(path.read_text(encoding="utf-8") for path in assets.DOCS.glob("*.md"))
    named = set(re.findall(r"\]\((images/[^)]+)\)", texts))
    replies = {name: client.get(f"/studio-docs/{name}") for name in named}
    assert named and {name: reply.status_code for name, reply in replies.items()} == dict.fromkeys(named, 200)
    assert all(reply.headers["content-type"].startswith("image/") for reply in replies.values())


def test_every_icon_that_is_named_is_drawn() -> None:
    drawn = set(re.findall(r'<symbol id="([\w-]+)"', assets.sprite()))
    code = "".join(path.read_text(encoding="utf-8") for path in JS)
    named = set(re.findall(r'(?:\bicon\(|symbol: |empty\()"([\w-]+)"', code))
    assert named - drawn == set()
    assert len(named) > 30


def test_scripts_build_the_page_without_markup_from_values_or_addresses_elsewhere() -> None:
    for path in JS:
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|https?://(?!www\.w3\.org/2000/svg)", text)
        assert found == [], path.name
        assert len(text.splitlines()) < 400, path.name
    for path in (assets.FOLDER / "css").glob("*.css"):
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)|@import", path.read_text(encoding="utf-8")) == [], path.name


def test_scripts_import_only_what_others_export() -> None:
    exports = {path.name: set(re.findall(r"^export (?:async )?(?:const|function|class) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)) for path in JS}
    for path in JS:
        for names, source in re.findall(r'^import \{ ([^}]+) \} from "\./([\w.]+)";', path.read_text(encoding="utf-8"), re.MULTILINE):
            assert {name.strip() for name in names.split(",")} <= exports[source], path.name


def test_the_studio_refuses_to_be_seen_by_other_machines(tmp_path: Path) -> None:
    from studio.ui.serve import serve

    with Workspace.open(tmp_path / "data") as workspace, pytest.raises(InputError, match="this machine only"):
        serve(workspace, host="0.0.0.0")


def test_a_taken_port_gives_way_to_the_next() -> None:
    from studio.ui.serve import _listen

    with _listen("127.0.0.1", 0) as first:
        taken = first.getsockname()[1]
        with _listen("127.0.0.1", taken) as second:
            assert taken < second.getsockname()[1] < taken + 20
