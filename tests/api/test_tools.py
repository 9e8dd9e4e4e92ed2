"""/api/tools: jobs are made, results stay inside the studio."""

from pathlib import Path

from starlette.testclient import TestClient

from studio.workspace import Workspace
from tests.jobs.test_tools import lora


def test_tools_are_submitted_as_jobs(client: TestClient, workspace: Workspace, tmp_path: Path) -> None:
    one, two = (workspace.library.add(lora(tmp_path / f"{name}.safetensors", i)) for i, name in enumerate(("one", "two")))
    job = client.post("/api/tools/merge", json={"loras": [{"name": one.name, "weight": 0.5}, f"{two.name}=0.5"], "name": "mix"})
    assert job.status_code == 201 and job.json()["kind"] == "merge" and job.json()["state"] == "queued" and job.json()["name"] == "mix"
    assert client.post("/api/tools/resize", json={"source": one.name, "energy": 0.9}).json()["name"] == "one-e0.9"
    baked = client.post("/api/tools/bake", json={"base": "demo-sdxl", "loras": [one.name], "name": "../my base"}).json()
    assert baked["kind"] == "bake" and baked["settings"]["output"] == "my-base.safetensors", "no place on the disk is shown or chosen"


def test_wrong_settings_and_places_are_refused(client: TestClient, workspace: Workspace, tmp_path: Path) -> None:
    one = workspace.library.add(lora(tmp_path / "one.safetensors", 1))
    for kind, body, words in (
        ("resize", {"source": one.name}, "name a rank or an energy"),
        ("resize", {"source": one.name, "rank": 4, "output": "/tmp/x.safetensors"}, "is for the command line"),
        ("merge", {"loras": []}, "loras"),
        ("bake", {"base": "demo-flux", "loras": [one.name]}, "choose another base or LoRA"),
    ):
        answer = client.post(f"/api/tools/{kind}", json=body)
        assert answer.status_code == 422 and words in answer.json()["error"], answer.text
    assert client.post("/api/tools/paint", json={}).status_code == 422
    assert workspace.jobs.list() == []
