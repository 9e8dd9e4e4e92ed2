"""Ways in which work stops, and studios that meet: cancel in every phase, leaving, clocks, two studios, a broken database."""

import os
import random
import signal
import time

import pytest

from studio.events import Finished, Loading, Started
from studio.jobs.folder import EventWriter
from studio.jobs.processes import alive, own_start
from studio.workspace import Workspace
from tests.faults import invariants
from tests.faults.conftest import Ground

TERMINAL = ("finished", "failed", "cancelled")


def last_words(ground: Ground, id: str) -> list[str]:
    return [event.kind for event in ground.folder(id).read()[0] if event.kind in TERMINAL]


def test_cancel_in_every_phase_ends_in_one_state_and_twice_is_harmless(ground: Ground) -> None:
    """queued, loading, caching, stepping and saving, sampling, exporting: cancelled as soon as the phase is told."""
    queued = ground.train(name="queued")
    for _ in range(2):
        assert ground.studio.jobs.cancel(queued).state == "cancelled"
    phases = {
        "starting": lambda e: isinstance(e, Loading) and e.phase == "starting",
        "cache": lambda e: isinstance(e, Loading) and e.phase == "Encoding pictures" and e.done > 0,
        "load": lambda e: isinstance(e, Loading) and e.phase.startswith("Loading "),
        "step": lambda e: e.kind == "step",
        "save": lambda e: e.kind == "checkpoint",
        "sample": lambda e: e.kind == "sample",
        "export": lambda e: isinstance(e, Loading) and e.phase == "writing the LoRA file",
    }
    for name, told in phases.items():
        long = name in ("step", "save", "sample")
        extra = {"sample_every": 1, "sample_prompts": "a circle"} if name == "sample" else {}
        id = ground.train(name=name, steps=500 if long else 2, save_every=1, trigger=f"word{name}", **extra)
        ground.until(lambda id=id, told=told: any(told(event) for event in ground.folder(id).read()[0]))
        began = time.monotonic()
        for _ in range(2):
            ground.studio.jobs.cancel(id)
        state = ground.until_ended(id)
        assert state == "cancelled" or (state == "finished" and not long), (name, state)
        assert time.monotonic() - began < 20
        assert last_words(ground, id) == [state], name
    ground.reopen()
    invariants.check(ground.studio)


@pytest.mark.parametrize("late", [False, True], ids=["cancel first", "finish first"])
def test_a_cancel_that_meets_the_end_ends_in_exactly_one_state(ground: Ground, late: bool) -> None:
    id = ground.train()
    folder = ground.folder(id)
    folder.write_claim(_own_claim(folder))
    ground.queue._change(id, "queued", state="running", device="cpu")
    writer = EventWriter(folder.events_file)
    for event in (Started(total=1), Finished(step=1)):
        if late == (event.kind == "started"):
            ground.studio.jobs.cancel(id)
        writer.append(event)
    writer.close()
    ground.studio.jobs.cancel(id)
    assert ground.until_ended(id) == "finished"
    ground.studio.jobs.cancel(id)
    ground.queue.tick()
    assert ground.state(id) == "finished" and last_words(ground, id) == ["finished"]


def _own_claim(folder):
    from studio.jobs.folder import Claim

    return Claim(pid=os.getpid(), started=own_start(), segment=folder.manifest().segment.number, device="cpu")


def test_a_worker_told_to_end_saves_first_and_its_run_goes_on_bit_for_bit(ground: Ground, unbroken: dict[str, bytes]) -> None:
    id = ground.train(save_every=0)
    ground.until_step(id, 1)
    began = time.monotonic()
    os.kill(ground.pid(id), signal.SIGTERM)
    state = ground.until_ended(id)
    assert time.monotonic() - began < 30
    job = ground.studio.jobs.show(id)
    assert state == "interrupted" and "told to end at step" in job.message and "resume" in job.remedy and "checkpoint of step" in job.kept
    step = ground.folder(id).checkpoints()[-1].step
    assert 1 <= step < 6
    ground.until(lambda: ground.workers[0].poll() is not None)
    assert ground.workers[0].poll() == 0
    ground.reopen()
    invariants.check(ground.studio)
    ground.studio.jobs.resume(id)
    assert ground.until_ended(id) == "finished"
    assert invariants.result(ground.studio, id) == unbroken


def test_a_clock_that_jumps_kills_nobody(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    id = ground.train(steps=8)
    ground.until_step(id, 1)
    real = time.time
    for jump in (86400.0, -86400.0):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        assert alive(ground.pid(id), own_start()) is False
        ground.queue.tick()
        assert ground.state(id) in ("running", "finished")
        ground.reopen()
        assert ground.state(id) in ("running", "finished")
    assert ground.until_ended(id) == "finished"
    assert len(ground.workers) == 1


def test_the_start_of_a_process_does_not_move_with_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    before = own_start()
    monkeypatch.setattr(psutil, "boot_time", lambda: 1.0)
    monkeypatch.setattr(time, "time", lambda: 1e9)
    assert alive(os.getpid(), before)
    assert not alive(os.getpid(), before - 1.0)


def test_two_studios_on_one_folder_run_every_job_once_and_the_second_takes_over(ground: Ground) -> None:
    from studio.jobs.devices import Device
    from studio.jobs.queue import Dispatcher

    other = Workspace.open(ground.data)
    second = Dispatcher(other._db, other.layout, lambda: [Device("cpu", "processor")])
    ids = [ground.train(name=f"one{i}", steps=1) for i in range(2)]
    from studio.config import TrainConfig, build
    from tests.faults.conftest import RUN

    ids += [other.jobs.train(build(TrainConfig, {**RUN, "name": f"two{i}", "steps": 1})).id for i in range(2)]
    assert not second.try_lead()
    ground.until(lambda: ground.state(ids[0]) == "finished")
    ground.queue._lock.release()  # as when its process is killed: the lock falls free, nothing else is done
    assert second.try_lead()
    ground.queue = second
    for id in ids:
        assert ground.until_ended(id) == "finished"
        assert last_words(ground, id) == ["finished"]
        assert [event.kind for event in ground.folder(id).read()[0]].count("started") == 1
    other._db.close()


@pytest.mark.long
def test_workers_and_dispatchers_killed_at_random_times(ground: Ground, unbroken: dict[str, bytes]) -> None:
    """A blind sweep; STUDIO_SWEEP_SECONDS bounds it, and what happened is printed."""
    sweep(ground, unbroken, kills=200, seconds=float(os.environ.get("STUDIO_SWEEP_SECONDS", "330")))


def test_a_few_kills_at_random_times(ground: Ground, unbroken: dict[str, bytes]) -> None:
    sweep(ground, unbroken, kills=4, seconds=60)


def sweep(ground: Ground, unbroken: dict[str, bytes], kills: int, seconds: float) -> None:
    dice = random.Random(4)
    counts = {"worker": 0, "dispatcher": 0, "finished": 0, "resumed": 0, "restarted": 0}
    limit = time.monotonic() + seconds
    id = ground.train()
    while counts["worker"] + counts["dispatcher"] < kills and time.monotonic() < limit:
        pause = time.monotonic() + dice.uniform(0.0, 1.2)
        while time.monotonic() < pause:
            ground.queue.tick()
            time.sleep(0.005)
        if dice.random() < 0.2:
            ground.reopen()  # books, lock and memory of the dispatcher are gone; the worker is not told
            counts["dispatcher"] += 1
        elif ground.state(id) == "running" and (claim := ground.folder(id).claim()) and alive(claim.pid, claim.started):
            os.kill(claim.pid, signal.SIGKILL)
            counts["worker"] += 1
            ground.until(lambda id=id: ground.state(id) != "running")
            ground.reopen()
            invariants.check(ground.studio)
        state = ground.state(id)
        if state == "finished":
            assert invariants.result(ground.studio, id) == unbroken, "I7"
            counts["finished"] += 1
            ground.studio.jobs.remove(id)
            id = ground.train()
        elif state not in ("queued", "running"):
            assert state == "interrupted", ground.studio.jobs.show(id).message
            counts["resumed" if ground.folder(id).checkpoints() else "restarted"] += 1
            id = ground.go_on(id)
    assert ground.until_ended(id) in ("finished", "interrupted")
    ground.reopen()
    invariants.check(ground.studio)
    print(f"random kills: {counts}")
    assert counts["worker"] > 0
