import errno
import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from studio.api.replies import public, without_paths
from studio.events import Checkpoint, Started, Step, to_line
from studio.workspace import Workspace


@pytest.fixture
def run(client: TestClient, filled: str) -> str:
    return client.post("/api/jobs/train", json={"images": filled, "base": "demo-sdxl", "steps": 5, "name": "cat"}).json()["id"]


def test_a_run_is_queued_with_every_default_resolved(client: TestClient, run: str) -> None:
    job = client.get(f"/api/jobs/{run}").json()
    assert (job["state"], job["kind"], job["config"]["rank"], job["settings"]["trigger"]) == ("queued", "train", None, "mycat")
    assert job["settings"]["rank"] > 0 and job["settings"]["seed"] >= 0
    assert [item["id"] for item in client.get("/api/jobs", params={"kind": "train"}).json()["items"]] == [run]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"images": "nowhere"}, "nowhere"),
        ({"images": "blueprint", "base": "no-such-base"}, "no-such-base"),
        ({"images": "blueprint", "ranc": 4}, "rank"),
        ({"images": "blueprint", "rank": 0}, "rank"),
        ({"images": "blueprint", "output": "/tmp/x.safetensors"}, "output"),
        ({"images": "blueprint", "steps": 10, "epochs": 2}, "epochs"),
        ({}, "images"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_and_makes_no_job(client: TestClient, body: dict[str, object], named: str) -> None:
    reply = client.post("/api/jobs/train", json=body)
    assert reply.status_code in (404, 422)
    assert named in reply.json()["error"] and "\n" not in reply.json()["error"]
    assert client.get("/api/jobs").json()["items"] == []


def test_a_queued_job_is_cancelled_run_again_moved_removed_and_restored(client: TestClient, run: str) -> None:
    assert client.post(f"/api/jobs/{run}/cancel").json()["state"] == "cancelled"
    again = client.post(f"/api/jobs/{run}/retry").json()
    assert again["id"] != run and again["settings"]["seed"] == client.get(f"/api/jobs/{run}").json()["settings"]["seed"]
    assert client.post(f"/api/jobs/{again['id']}/move", json={"place": 0}).json()["state"] == "queued"
    token = client.delete(f"/api/jobs/{run}").json()["token"]
    assert client.get(f"/api/jobs/{run}").status_code == 404
    assert client.post("/api/jobs/restore", json={"token": token}).json()["id"] == run


def test_the_queue_is_paused_ordered_and_copied_and_a_repeated_request_makes_one_job(client: TestClient, filled: str) -> None:
    body = {"images": filled, "base": "demo-sdxl", "steps": 5, "name": "cat"}
    run = client.post("/api/jobs/train", json=body, headers={"idempotency-key": "k"}).json()["id"]
    assert client.post("/api/jobs/train", json=body, headers={"idempotency-key": "k"}).json()["id"] == run
    assert client.post("/api/jobs/train", json={**body, "steps": 6}, headers={"idempotency-key": "k"}).status_code == 409
    assert client.post("/api/jobs/train", json=body, headers={"idempotency-key": "k" * 101}).status_code == 422
    assert len(client.get("/api/jobs").json()["items"]) == 1
    copy = client.post(f"/api/jobs/{run}/duplicate", json={"changes": {"rank": 3}})
    assert copy.status_code == 201 and copy.json()["settings"]["rank"] == 3
    assert client.post(f"/api/jobs/{run}/duplicate", json={"changes": {"output": "/tmp/x.safetensors"}}).status_code == 422
    assert client.post(f"/api/jobs/{copy.json()['id']}/priority", json={"priority": 2}).json()["priority"] == 2
    assert client.post(f"/api/jobs/{run}/pause").json()["state"] == "paused"
    assert client.post(f"/api/jobs/{run}/resume").json()["state"] == "queued"


def test_steering_a_job_that_does_not_run_says_so(client: TestClient, run: str) -> None:
    for verb in ("sample", "finish", "resume"):
        reply = client.post(f"/api/jobs/{run}/{verb}")
        assert reply.status_code == 409 and "queued" in reply.json()["error"]
    assert client.post(f"/api/jobs/{run}/extend", json={"steps": 0}).status_code == 422


def test_history_is_thinned_and_keeps_everything_but_steps(client: TestClient, workspace: Workspace, run: str) -> None:
    events = [Started(total=9000), *(Step(step=i, total=9000, loss=1 / i, learning_rate=1e-3, gradient_norm=0.5) for i in range(1, 9001))]
    events.append(Checkpoint(step=9000, path="checkpoints/a", adapter="checkpoints/a/adapter.safetensors", sha256="0", bytes=1))
    with open(workspace.layout.jobs / run / "events.jsonl", "a") as file:
        file.writelines(map(to_line, events))
    told = client.get(f"/api/jobs/{run}/history").json()
    assert len(told["points"]) <= 2001
    assert (told["points"][0], told["points"][-1]) == ([1, 1.0, 1e-3, 0.5], [9000, 1 / 9000, 1e-3, 0.5])
    assert [event["kind"] for event in told["events"]] == ["started", "checkpoint"]
    page = client.get(f"/api/jobs/{run}/events").json()
    assert len(page["events"]) == 9002
    assert client.get(f"/api/jobs/{run}/events", params={"after": page["after"]}).json()["events"] == []


def test_files_of_a_job_go_out_as_files_not_pages(client: TestClient, workspace: Workspace, run: str) -> None:
    folder = workspace.layout.jobs / run / "samples"
    folder.mkdir(exist_ok=True)
    (folder / "x.html").write_text("<script>1</script>")
    reply = client.get(f"/api/jobs/{run}/files/samples/x.html")
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["content-disposition"].startswith("attachment")
    assert client.get(f"/api/jobs/{run}/files/../{run}/job.json").status_code == 404
    assert client.get(f"/api/jobs/{run}/export").status_code == 404


def test_generate_refuses_a_lora_of_no_library_and_draws_up_a_job_otherwise(client: TestClient) -> None:
    refused = client.post("/api/jobs/generate", json={"prompt": "a cat", "loras": [{"name": "none"}]})
    assert refused.status_code == 404 and "none" in refused.json()["error"]
    job = client.post("/api/jobs/generate", json={"prompt": "a <b>cat</b>", "width": 128, "height": 128}).json()
    assert (job["state"], job["settings"]["prompt"]) == ("queued", "a <b>cat</b>")


def test_no_reply_tells_where_the_studio_lies(client: TestClient, workspace: Workspace, run: str, tmp_path: Path) -> None:
    paths = [
        "/api/status",
        "/api/sets",
        "/api/jobs",
        f"/api/jobs/{run}",
        f"/api/jobs/{run}/history",
        "/api/adapters",
        "/api/images",
        "/api/bases",
        "/api/sets/none",
    ]
    for path in paths:
        text = client.get(path).text
        assert str(tmp_path) not in text and "/assets/bases" not in text, path
    assert str(tmp_path) not in client.post("/api/bases", json={"name": "x", "path": str(tmp_path / "none")}).text


def test_paths_are_cut_out_of_sentences_and_settings() -> None:
    assert without_paths("/home/me/data/x.safetensors: no such file") == "x.safetensors: no such file"
    assert without_paths("C:\\Users\\me\\x.png is broken") == "x.png is broken"
    assert without_paths("loss 1/2 and/or a ratio") == "loss 1/2 and/or a ratio"
    assert public({"path": "/a/b/c", "prompt": "/a/b/c", "loras": [{"name": "/x/y.safetensors"}]}) == {
        "path": "c",
        "prompt": "/a/b/c",
        "loras": [{"name": "y.safetensors"}],
    }


def test_the_schema_of_settings_is_the_settings_class(client: TestClient) -> None:
    schema = client.get("/api/settings/train").json()
    assert schema["additionalProperties"] is False
    assert "learning_rate" in json.dumps(schema)
    assert client.get("/api/settings/other").status_code == 422


def test_a_full_disk_is_told_as_one(client: TestClient, filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("studio.workspace.sets.write_whole", full)
    name = client.get(f"/api/sets/{filled}").json()["pictures"][0]["name"]
    reply = client.patch(f"/api/sets/{filled}/pictures/{name}", json={"caption": "new"})
    assert (reply.status_code, reply.json()["error"]) == (507, "the disk is full; free some space and do it again")


def test_a_sweep_is_many_runs_and_a_run_is_held_against_a_recipe(client: TestClient, filled: str) -> None:
    wish = {"settings": {"images": filled, "name": "swept", "base": "demo-sdxl", "steps": 3}, "over": ["rank=2,4", "lr_schedule=constant,cosine"]}
    made = client.post("/api/sweeps", json=wish)
    assert made.status_code == 201 and len(made.json()["jobs"]) == 4
    assert client.get("/api/sweeps").json()["items"] == [{"id": made.json()["id"], "name": "swept", "rows": wish["over"], "jobs": made.json()["jobs"]}]
    assert client.get(f"/api/sweeps/{made.json()['id']}/sheet").status_code == 404
    assert client.post("/api/sweeps", json={**wish, "over": ["output=a"]}).status_code == 422
    assert client.post("/api/sweeps", json={**wish, "settings": {**wish["settings"], "output": "/tmp/a.safetensors"}}).status_code == 422
    names = [recipe["name"] for recipe in client.get("/api/recipes").json()["items"]]
    rows = client.get(f"/api/recipes/{names[-1]}/diff/{made.json()['jobs'][0]}").json()["items"]
    assert {"setting": "rank", "run": 2}.items() <= next(row for row in rows if row["setting"] == "rank").items() and all(row["why"] for row in rows)
    line = client.get(f"/api/jobs/{made.json()['jobs'][0]}/command").json()
    assert line["cut"] is False and line["command"].startswith(f"lora-studio train --images {filled} --name swept-rank-2-lr_schedule-constant")
