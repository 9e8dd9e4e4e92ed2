"""Claims about memory plans before there is a job: on the page's road, over HTTP and on the command line."""

import json
import shutil

import pytest
from starlette.testclient import TestClient

from studio import api
from studio.cli import main
from studio.config import TrainConfig, build
from studio.errors import ImageError
from studio.families.parts import CONFIGS
from studio.families.sources import BUILTIN
from studio.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    """A studio with a full-size base that has configs and no weights: more a plan does not need."""
    folder = tmp_path / "flux"
    shutil.copytree(CONFIGS / "flux", folder)
    shutil.copy(BUILTIN / "demo-flux" / "model_index.json", folder)
    with Workspace.open(tmp_path / "data") as opened:
        opened.bases.add("flux-dev", folder)
        yield opened


def config(**values):
    return build(TrainConfig, {"base": "flux-dev", "images": "blueprint", "rank": 16, **values})


def test_presets_of_cards_choose_less_and_less_as_memory_shrinks(workspace):
    found = [workspace.fitting.plan(config(resolution=512), card) for card in (48, 24, 8)]
    assert all(plan["fits"] and plan["cuda"] for plan in found)
    assert found[0]["chosen"] == {"base_format": "full", "recomputed": 0.0, "block_offload": 0.0, "recorded": True, "apart": []}
    assert found[0]["peak"] > found[1]["peak"] > found[2]["peak"] and found[2]["chosen"]["apart"] == ["text"]


def test_a_budget_in_the_settings_counts_before_the_card(workspace):
    assert workspace.fitting.plan(config(memory_budget=12), 24)["budget"] == 12_000_000_000


def test_this_machine_is_planned_by_its_own_memory(workspace, monkeypatch):
    monkeypatch.setenv("STUDIO_DEVICE", "cpu")
    found = workspace.fitting.plan(build(TrainConfig, {"base": "demo-sdxl", "images": "blueprint"}))
    assert found["fits"] and not found["cuda"] and found["budget"] > 0 and workspace.fitting.rehearsal(config()) is None


def test_a_set_that_is_not_there_is_refused_unless_none_is_chosen_yet(workspace):
    with pytest.raises(ImageError):
        workspace.fitting.plan(config(images="nowhere"))
    assert workspace.fitting.plan(config(images="nowhere"), 24, counted=False)["fits"]


def test_http_gives_the_plan_and_starts_nothing(workspace):
    client = TestClient(api.app(workspace), base_url="http://127.0.0.1:7860")
    found = client.post("/api/jobs/train/plan", json={"settings": {"base": "flux-dev", "rank": 16}, "card": 24})
    assert found.status_code == 200 and found.json()["fits"] and found.json()["phases"]["training"]["parts"]["frozen base"] > 10**9
    tight = client.post("/api/jobs/train/plan", json={"settings": {"base": "flux-dev", "rank": 16, "resolution": 2048}, "card": 4}).json()
    assert not tight["fits"] and "takes at least" in tight["notes"][0]
    assert client.post("/api/jobs/train/plan", json={"settings": {"rnak": 1}}).status_code == 422
    assert workspace.jobs.list() == []


def test_the_command_line_prints_the_plan_of_a_demo_base_and_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("STUDIO_DEVICE", "cpu")
    common = ["--data", str(tmp_path / "data"), "--images", "blueprint", "--plan"]
    for base in ("demo-sdxl", "demo-flux"):
        assert main(["train", *common, "--base", base]) == 0
        said = capsys.readouterr().out
        assert "frozen base" in said and ": fits" in said and "why: everything fits" in said
    assert main(["train", *common, "--base", "demo-sdxl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "plan"
    with Workspace.open(tmp_path / "data") as opened:
        assert opened.jobs.list() == []
