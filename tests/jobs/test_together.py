"""Generate jobs in one pass through a real worker: drawn together, ended apart, and each recoverable when the worker is killed."""

import os
import signal

from studio.config import GenerateConfig, build
from studio.events import Step
from studio.jobs.folder import JobFolder
from studio.workspace import Workspace
from tests.jobs.test_worker import until_step, wait

SMALL = {"base": "demo-sdxl", "width": 64, "height": 64, "live_preview": 0, "batch": 4}


def submit(studio: Workspace, **values: object) -> str:
    return studio.jobs.generate(build(GenerateConfig, {**SMALL, **values})).id


def test_waiting_jobs_share_a_pass_and_end_apart(studio: Workspace) -> None:
    ids = [submit(studio, prompt=f"a circle {i}", seed=i, steps=80) for i in range(3)]  # none is done before it is cancelled
    other = submit(studio, prompt="a circle", seed=1, steps=2)
    studio.start()
    until_step(studio, ids[0], 2)
    claims = [JobFolder(studio.layout.jobs / id).claim() for id in ids]
    assert all(claims) and len({claim.pid for claim in claims if claim}) == 1 and JobFolder(studio.layout.jobs / other).claim() is None
    studio.jobs.cancel(ids[1])
    wait(lambda: studio.jobs.show(ids[1]).state == "cancelled")
    assert [studio.jobs.show(id).state for id in (ids[0], ids[2], other)] == ["running", "running", "queued"], "a mate that is cancelled ends alone"

    assert claims[0] is not None
    os.kill(claims[0].pid, signal.SIGKILL)
    wait(lambda: [studio.jobs.show(id).state for id in (ids[0], ids[2])] == ["interrupted", "interrupted"])
    again = studio.jobs.retry(ids[2]).id
    assert list(studio.jobs.follow(again))[-1].kind == "finished" and len(studio.gallery.list(job=again)) == 1
    assert list(studio.jobs.follow(other))[-1].kind == "finished"


def test_a_job_whose_lora_is_broken_fails_without_its_mates(studio: Workspace, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    from studio.config import TrainConfig
    from tests.jobs.conftest import SHORT

    run = studio.jobs.train(build(TrainConfig, {**SHORT, "name": "sound", "steps": 1}))
    assert list(studio.jobs.follow(run.id))[-1].kind == "finished"
    tensors = load_file(studio.library.path("sound"))
    broken = tmp_path / "broken.safetensors"
    save_file({key: value * float("nan") if key.endswith("up.weight") else value for key, value in tensors.items()}, broken)
    bad = submit(studio, prompt="a circle", loras=[str(broken)], seed=1, steps=2)
    good = submit(studio, prompt="a square", loras=["sound"], seed=2, steps=2)
    base = submit(studio, prompt="a square", seed=2, steps=2)
    studio.start()
    for id in (good, base):
        events = list(studio.jobs.follow(id))
        assert events[-1].kind == "finished" and sum(isinstance(event, Step) for event in events) == 2
    list(studio.jobs.follow(bad))
    assert studio.jobs.show(bad).state == "failed" and "no numbers" in studio.jobs.show(bad).message
    pictures = [studio.gallery.path(studio.gallery.list(job=id)[0].id).read_bytes() for id in (good, base)]
    assert pictures[0] != pictures[1]
