"""Real jobs through a real worker process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from PIL import Image

from studio.config import GenerateConfig, TrainConfig, build
from studio.errors import NotFound, RunError
from studio.events import Checkpoint, Event, Exported, Finished, Sample, Started, Step
from studio.jobs.folder import JobFolder
from studio.jobs.worker import STEPS_TO_CANCEL
from studio.metadata import read_header
from studio.workspace import Workspace
from tests.jobs.conftest import SHORT

SECONDS = 120.0


def config(**changes: object) -> TrainConfig:
    return build(TrainConfig, {**SHORT, "steps": 4, "save_every": 2, **changes})


def wait(what: Callable[[], object], seconds: float = SECONDS) -> object:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events if event.kind != "loading"]


def steps(studio: Workspace, id: str) -> int:
    """How many it has told."""
    return sum(isinstance(event, Step) for event in studio.jobs.events(id).events)


def until_step(studio: Workspace, id: str, step: int) -> None:
    wait(lambda: any(isinstance(e, Step) and e.step >= step for e in studio.jobs.events(id).events))


def test_a_run_is_trained_exported_and_taken_into_the_library(studio: Workspace, tmp_path: Path) -> None:
    output = tmp_path / "mine.safetensors"
    job = studio.jobs.train(config(name="whole-way", output=str(output)))
    events = list(studio.jobs.follow(job.id))
    assert kinds(events) == ["started", "step", "step", "checkpoint", "step", "step", "checkpoint", "exported", "finished"]

    done = studio.jobs.show(job.id)
    assert (done.state, done.step, done.total) == ("finished", 4, 4)
    exported = next(event for event in events if isinstance(event, Exported))
    row = studio.library.show("whole-way")
    assert (row.family, row.rank, row.trigger, row.base, row.run) == ("sdxl", 2, "zqx", "demo-sdxl", job.id)
    words = read_header(studio.library.path("whole-way")).metadata
    assert words["ss_steps"] == "4" and words["modelspec.trigger_phrase"] == "zqx"
    assert studio.jobs.file(job.id, exported.path).read_bytes() == studio.library.path(row.id).read_bytes()
    assert read_header(output).shapes == read_header(studio.library.path(row.id)).shapes

    first, last = studio.jobs.checkpoints(job.id)
    target = tmp_path / "early.safetensors"
    export = studio.jobs.export(first.ref, target, "peft", "fp32")
    assert kinds(list(studio.jobs.follow(export.id))) == ["exported", "finished"]
    assert read_header(target).metadata["ss_steps"] == "2"
    assert last.step == 4

    longer = studio.jobs.extend(job.id, 2)
    assert (longer.state, longer.step, longer.total) == ("queued", 4, 6)
    events = list(studio.jobs.follow(job.id))
    assert [event.step for event in events if isinstance(event, Step)] == [5, 6]
    assert [c.step for c in studio.jobs.checkpoints(job.id)] == [2, 4, 6]
    assert {row.name for row in studio.library.list() if row.run == job.id} == {"whole-way", "whole-way-2"}


def test_previews_and_pictures_come_from_the_lora_and_the_base_stays_loaded(studio: Workspace) -> None:
    run = studio.jobs.train(config(name="drawn", steps=1, sample_every=1, sample_prompts="a circle"))
    samples = [event for event in studio.jobs.follow(run.id) if isinstance(event, Sample)]
    assert [(sample.step, sample.prompt) for sample in samples] == [(1, "a circle")]
    assert studio.jobs.file(run.id, samples[0].path).is_file() and studio.library.preview("drawn").is_file()

    values = {"prompt": "a circle <lora:drawn:0.7>", "count": 2, "steps": 2, "seed": 11, "width": 64, "height": 64}
    jobs = [studio.jobs.generate(build(GenerateConfig, values)) for _ in range(2)]
    for job in jobs:
        assert kinds(list(studio.jobs.follow(job.id)))[-2:] == ["image", "finished"]
    assert studio.status().devices[0].base == "demo-sdxl"
    first, second = (studio.gallery.list(job=job.id) for job in jobs)
    assert [row.seed for row in first] == [12, 11] and len(second) == 2
    pixels = [Image.open(studio.gallery.path(rows[0].id)).tobytes() for rows in (first, second)]
    assert pixels[0] == pixels[1]
    recalled = studio.gallery.recall(studio.gallery.path(first[1].id))
    assert (recalled.seed, [(row.name, row.weight) for row in recalled.loras]) == (11, [("drawn", 0.7)])


def test_a_run_is_a_lora_of_a_stack_by_its_steps(studio: Workspace) -> None:
    """A run that goes on is pinned at its next step; its pictures name the step, and later that step can be taken again."""
    studio.start()
    run = studio.jobs.train(config(name="alive", steps=5000))
    following = studio.jobs.follow(run.id)
    next(event for event in following if isinstance(event, Step))
    values = {"prompt": "a circle", "loras": ["alive@live"], "steps": 1, "seed": 1, "width": 64, "height": 64}
    job = studio.jobs.generate(build(GenerateConfig, values))
    studio.jobs.finish_now(run.id)
    row = job.settings["loras"][0]["name"]
    kept = studio.jobs.checkpoints(run.id)  # the one that was drawn with, and perhaps that of the end already
    assert row in [f"alive@{one.step}" for one in kept] and kept[0].step < 5000
    assert kinds(list(studio.jobs.follow(job.id)))[-1] == "finished"
    again = studio.jobs.generate(build(GenerateConfig, {**values, "loras": [row]}))
    assert kinds(list(studio.jobs.follow(again.id)))[-1] == "finished"
    first, second = (Image.open(studio.gallery.path(studio.gallery.list(job=one.id)[0].id)).tobytes() for one in (job, again))
    assert first == second
    with pytest.raises(NotFound, match="no checkpoint of step 7000"):
        studio.jobs.generate(build(GenerateConfig, {**values, "loras": ["alive@7000"]}))


def test_a_queued_job_is_cancelled_at_once_and_a_running_one_at_its_next_step(studio: Workspace) -> None:
    studio.start()
    running = studio.jobs.train(config(name="long", steps=5000, save_every=3))
    waiting = studio.jobs.train(config(name="later"))
    until_step(studio, running.id, 4)
    assert studio.jobs.cancel(waiting.id).state == "cancelled"
    assert [event.kind for event in studio.jobs.events(waiting.id).events] == ["cancelled"]

    studio.jobs.cancel(running.id)
    asked = steps(studio, running.id)
    studio.jobs.cancel(running.id)
    wait(lambda: studio.jobs.show(running.id).state == "cancelled")
    assert steps(studio, running.id) - asked <= STEPS_TO_CANCEL + 1, "the one that was being taken, and those that an engine may take"
    job = studio.jobs.show(running.id)
    assert "checkpoint" in job.kept and studio.jobs.checkpoints(job.id)
    assert [event.kind for event in studio.jobs.events(job.id).events].count("cancelled") == 1


def test_finish_now_keeps_what_is_there_and_exports_it(studio: Workspace) -> None:
    job = studio.jobs.train(config(name="early-end", steps=5000))
    studio.start()
    until_step(studio, job.id, 2)
    studio.jobs.finish_now(job.id)
    events = list(studio.jobs.follow(job.id))
    assert isinstance(events[-1], Finished) and events[-1].step < 5000
    assert studio.library.show("early-end").run == job.id


def test_a_killed_worker_leaves_an_interrupted_run_that_goes_on_from_its_checkpoint(studio: Workspace) -> None:
    job = studio.jobs.train(config(name="killed", steps=12, save_every=2))
    studio.start()
    until_step(studio, job.id, 3)
    claim = JobFolder(studio.layout.jobs / job.id).claim()
    assert claim is not None
    os.kill(claim.pid, signal.SIGKILL)
    last = list(studio.jobs.follow(job.id))[-1]
    stopped = studio.jobs.show(job.id)
    assert stopped.state == "interrupted" and last.kind == "failed"
    assert stopped.message and "checkpoint of step" in stopped.kept and "resume" in stopped.remedy

    at = studio.jobs.checkpoints(job.id)[-1].step
    studio.jobs.resume(job.id)
    with pytest.raises(RunError, match="to train it further"):
        studio.jobs.resume(job.id)
    events = list(studio.jobs.follow(job.id))
    started = next(event for event in events if isinstance(event, Started))
    assert started.step == at
    assert [event.step for event in events if isinstance(event, Step)] == list(range(at + 1, 13))
    assert studio.jobs.show(job.id).state == "finished"
    assert JobFolder(studio.layout.jobs / job.id).claim() != claim


def test_a_pause_frees_the_device_and_the_run_goes_on_as_if_nothing_had_been(studio: Workspace) -> None:
    whole = studio.jobs.train(config(name="unbroken", steps=12, save_every=0, sample_every=0))
    unbroken = [event.loss for event in studio.jobs.follow(whole.id) if isinstance(event, Step)]
    job = studio.jobs.train(config(name="paused", steps=12, save_every=0, sample_every=0))
    studio.start()
    until_step(studio, job.id, 2)
    studio.jobs.pause(job.id)
    wait(lambda: studio.jobs.show(job.id).state == "paused")
    at = studio.jobs.show(job.id).step
    assert 2 <= at < 12 and [c.step for c in studio.jobs.checkpoints(job.id)] == [at]
    between = studio.jobs.export(f"{job.id}@{at}")
    assert kinds(list(studio.jobs.follow(between.id)))[-1] == "finished"
    studio.jobs.resume(job.id)
    assert kinds(list(studio.jobs.follow(job.id)))[-1] == "finished"
    assert [event.loss for event in studio.jobs.events(job.id).events if isinstance(event, Step)] == unbroken


def test_killing_the_studio_loses_nothing_and_the_next_one_tells_the_truth(studio: Workspace) -> None:
    script = (
        "import sys; from pathlib import Path; from studio.workspace import Workspace; from studio.config import GenerateConfig, TrainConfig, build\n"
        "import json; ws = Workspace.open(Path(sys.argv[1])); job = ws.jobs.train(build(TrainConfig, json.loads(sys.argv[2])))\n"
        "print(job.id, flush=True); list(ws.jobs.follow(job.id))"
    )
    values = config(name="orphan", steps=30, save_every=5).model_dump_json()
    process = subprocess.Popen([sys.executable, "-c", script, str(studio.layout.root), values], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    id = process.stdout.readline().strip()
    until_step(studio, id, 2)
    worker = JobFolder(studio.layout.jobs / id).claim()
    process.kill()
    process.wait()
    assert worker is not None and psutil.pid_exists(worker.pid)

    rest = [event.step for event in studio.jobs.follow(id) if isinstance(event, Checkpoint)]
    assert rest[-1] == 30
    assert studio.jobs.show(id).state == "finished"
    assert studio.library.show("orphan").run == id
    assert JobFolder(studio.layout.jobs / id).claim() == worker


def test_rows_are_rebuilt_from_the_folders_alone(studio: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {job.id: (job.state, job.step, job.segment) for job in studio.jobs.list()}
    assert before
    adapters = {row.id: (row.name, row.sha256, row.trigger) for row in studio.library.list()}
    monkeypatch.setenv("STUDIO_DATABASE_URL", f"sqlite:///{tmp_path / 'other.db'}")
    empty = Workspace.open(studio.layout.root)
    try:
        assert empty.jobs.list() == []
        empty.start()
        wait(lambda: len(empty.jobs.list()) == len(before) and not empty.jobs.queue(), 20)
        assert {job.id: (job.state, job.step, job.segment) for job in empty.jobs.list()} == before
        assert {row.id: (row.name, row.sha256, row.trigger) for row in empty.library.list()} == adapters
    finally:
        empty.close()
