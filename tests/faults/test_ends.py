"""Ways in which work stops, and studios that meet: cancel in every phase, leaving, clocks, two studios, a broken database."""

import os
import random
import signal
import time

import psutil
import pytest

from studio.config import GenerateConfig, build
from studio.events import Finished, Loading, Started
from studio.jobs import processes
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
        for _ in range(2):
            ground.studio.jobs.cancel(id)
        state = ground.until_ended(id)
        assert state == "cancelled" or (state == "finished" and not long), (name, state)
        assert ground.workers[-1].poll() is None, f"{name}: it obeyed, and was not ended for taking too long"
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
    os.kill(ground.pid(id), signal.SIGTERM)
    state = ground.until_ended(id)
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
        claim = ground.folder(id).claim()
        assert claim and alive(claim.pid, claim.started)
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
    """A blind sweep over the whole length of a run, load, cache, steps, checkpoints and export; SWEEP_SECONDS bounds it, its counts are printed."""
    sweep(ground, unbroken, kills=200, seconds=float(os.environ.get("SWEEP_SECONDS", "330")))


def test_a_few_kills_at_random_times(ground: Ground, unbroken: dict[str, bytes]) -> None:
    sweep(ground, unbroken, kills=4, seconds=60)


def sweep(ground: Ground, unbroken: dict[str, bytes], kills: int, seconds: float) -> None:
    dice = random.Random(4)
    counts = {"worker": 0, "dispatcher": 0, "finished": 0, "resumed": 0, "restarted": 0}
    began = time.monotonic()
    assert ground.until_ended(ground.train()) == "finished"
    length = time.monotonic() - began
    limit = time.monotonic() + seconds
    id = ground.train()
    while counts["worker"] + counts["dispatcher"] < kills and time.monotonic() < limit:
        pause = time.monotonic() + dice.uniform(0.0, length)
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
    while (state := ground.until_ended(id)) != "finished":
        assert state == "interrupted", ground.studio.jobs.show(id).message
        id = ground.go_on(id)
    assert invariants.result(ground.studio, id) == unbroken, "I7"
    ground.reopen()
    invariants.check(ground.studio)
    print(f"random kills: {counts}; a whole run takes {length:.1f} s")
    assert counts["worker"] > 0 and (kills < 100 or (counts["resumed"] > 0 and counts["finished"] > 0))


STOPPED = [pytest.param(1.0, 4.0, id="a moment"), pytest.param(processes.SILENT_SECONDS, 60.0, id="a minute", marks=pytest.mark.long)]


@pytest.mark.parametrize(("silent", "stopped"), STOPPED)
def test_a_worker_that_stands_still_is_shown_and_goes_on(ground: Ground, monkeypatch: pytest.MonkeyPatch, silent: float, stopped: float) -> None:
    monkeypatch.setattr(processes, "SILENT_SECONDS", silent)
    monkeypatch.setattr(processes, "HEARTBEAT_SECONDS", min(processes.HEARTBEAT_SECONDS, silent / 5))
    monkeypatch.setattr("studio.jobs.worker.HEARTBEAT_SECONDS", min(processes.HEARTBEAT_SECONDS, silent / 5))
    id = ground.train(steps=12, save_every=0)
    ground.until_step(id, 1)
    pid = ground.pid(id)
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        shown = set()
        while time.monotonic() - began < stopped + silent:
            ground.queue.tick()
            [device] = ground.studio.status().devices
            shown.add((device.worker, ground.studio.jobs.show(id).message))
            time.sleep(0.05)
        assert ("silent", "not responding") in shown and (device.worker, ground.state(id)) == ("silent", "running")
        assert len(ground.workers) == 1, "nobody else was started on it"
    finally:
        os.kill(pid, signal.SIGCONT)
    ground.until(lambda: ground.studio.jobs.show(id).message == "")
    assert ground.until_ended(id) == "finished" and ground.pid(id) == pid
    assert len(ground.workers) == 1 and last_words(ground, id) == ["finished"]


def test_a_worker_that_stands_still_can_be_cancelled(ground: Ground) -> None:
    """It cannot obey, so it is ended once its time is over, and its memory is free within five seconds of that."""
    ground.queue._cancel_seconds = 1.0
    id = ground.train(steps=200, save_every=0)
    ground.until_step(id, 1)
    claim = ground.folder(id).claim()
    assert claim
    os.kill(claim.pid, signal.SIGSTOP)
    ground.studio.jobs.cancel(id)
    ground.until(lambda: not alive(claim.pid, claim.started))
    assert ground.until_ended(id) == "cancelled" and last_words(ground, id) == ["cancelled"]


def test_what_a_killed_worker_held_is_free_within_five_seconds(ground: Ground) -> None:
    """And being killed by the system is told apart from being cancelled by a person."""
    id = ground.train(steps=200, save_every=0)
    ground.until_step(id, 1)
    claim = ground.folder(id).claim()
    assert claim
    held = psutil.Process(claim.pid).memory_info().rss
    family = [psutil.Process(claim.pid), *psutil.Process(claim.pid).children(recursive=True)]
    os.kill(claim.pid, signal.SIGKILL)
    began = time.monotonic()
    while ground.workers[0].poll() is None:
        time.sleep(0.01)
    assert held > 0 and not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)
    assert time.monotonic() - began < 5
    assert ground.until_ended(id) == "interrupted"
    job = ground.studio.jobs.show(id)
    assert "killed by the system" in job.message and "memory" in job.message and "retry" in job.remedy
    assert ground.queue.backend.worker("cpu") is None


@pytest.mark.long
def test_pictures_and_exports_are_cancelled_in_every_phase(ground: Ground) -> None:
    run = ground.train(steps=1)
    assert ground.until_ended(run) == "finished"
    [adapter] = ground.studio.library.list()

    def drawn(**more: object) -> str:
        return ground.studio.jobs.generate(build(GenerateConfig, {"base": "demo-sdxl", "prompt": "a circle", "seed": 1, **more})).id

    phases = {
        "load": (lambda: drawn(steps=2), lambda e: isinstance(e, Loading)),
        "draw": (lambda: drawn(steps=200, count=4), lambda e: e.kind == "step"),
        "second picture": (lambda: drawn(steps=20, count=40), lambda e: e.kind == "image"),
        "export": (lambda: ground.studio.jobs.export(adapter.name).id, lambda e: isinstance(e, Loading)),
    }
    for name, (submit, told) in phases.items():
        id = submit()
        ground.until(lambda id=id, told=told: any(told(event) for event in ground.folder(id).read()[0]))
        for _ in range(2):
            ground.studio.jobs.cancel(id)
        state = ground.until_ended(id)
        assert state == "cancelled" or (state == "finished" and name in ("load", "export")), (name, state)
        assert last_words(ground, id) == [state], name
    ground.reopen()
    invariants.check(ground.studio)
