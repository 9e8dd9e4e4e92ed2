"""A wall clock that is set forward or back by an hour: nobody is taken for dead, nothing loses its place, pages go on."""

import os
import time
from pathlib import Path

import pytest

from studio.jobs import processes, worker
from studio.jobs.processes import WorkerState, own_start, silent
from studio.library import ids
from studio.workspace import Workspace
from studio.workspace.hub import Hub
from studio.workspace.jobs import record
from studio.workspace.watch import Watch
from tests.jobs import node

HOUR = 3600.0
JUMPS = pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["forward", "back"])


def set_clock(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    real, real_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(jump * 1e9))


@JUMPS
def test_a_worker_whose_heart_beats_is_never_taken_for_silent(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    steady = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: steady[0])
    state = WorkerState(pid=os.getpid(), started=own_start(), device="cpu", beat=time.time())
    assert not silent(state)
    set_clock(monkeypatch, jump)
    assert not silent(state)
    for _ in range(20):
        steady[0] += processes.HEARTBEAT_SECONDS
        state = state.model_copy(update={"beat": time.time() + steady[0]})
        assert not silent(state)
    steady[0] += processes.SILENT_SECONDS - 1
    assert not silent(state)
    steady[0] += 2
    assert silent(state)


@JUMPS
def test_pages_hear_what_happens_after_the_jump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    with Workspace.open(tmp_path / "data") as studio:
        hub = Hub()
        watch = Watch(studio._db, studio.layout, hub, record)
        waits, runs = (studio.jobs.submit(node.manifest(name)).id for name in ("waits", "runs"))
        studio._dispatcher._change(runs, "queued", state="running")
        watch.look()
        before = hub.seq
        set_clock(monkeypatch, jump)
        studio.jobs.prioritise(waits, 7)
        studio._dispatcher._change(runs, "running", state="finished")
        new = studio.jobs.submit(node.manifest("new")).id
        watch.look()
        heard = {message["job"]: message["row"] for message in hub.since(before) if message.get("row")}
        assert (heard[waits]["priority"], heard[runs]["state"], heard[new]["state"]) == (7, "finished", "queued")
        seen = hub.seq
        watch.look()
        assert hub.seq == seen, "nothing is told twice"


@JUMPS
def test_who_comes_later_stays_behind_in_the_line_and_in_front_of_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    with Workspace.open(tmp_path / "data") as studio:
        first = [studio.jobs.submit(node.manifest(f"first-{i}")).id for i in range(3)]
    set_clock(monkeypatch, jump)
    monkeypatch.setattr(ids, "_last", 0)  # as in a process that was started after the jump
    with Workspace.open(tmp_path / "data") as studio:
        second = [studio.jobs.submit(node.manifest(f"second-{i}")).id for i in range(3)]
        assert [row.id for row in studio.jobs.queue()] == first + second
        assert [row.id for row in studio.jobs.list()] == [*reversed(second), *reversed(first)]


@JUMPS
def test_a_cancel_has_its_time_to_be_obeyed_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """The worker is ended once so many seconds have passed, whatever the clock says."""
    ended: list[int] = []
    with Workspace.open(tmp_path / "data") as studio:
        queue = studio._dispatcher
        monkeypatch.setattr(queue.backend, "present", lambda home: True)
        monkeypatch.setattr(queue.backend, "end", lambda home, claim: ended.append(claim.pid))
        monkeypatch.setattr("studio.workspace.workspace.devices", list)
        id = studio.jobs.submit(node.manifest("stubborn")).id
        home = worker.Worker(studio.layout, "cpu")
        folder = studio.jobs._folder(id)
        queue._change(id, "queued", state="running", device="cpu")
        folder.write_claim(home._claim(1, "cpu"))
        studio.jobs.cancel(id)
        steady = [time.monotonic()]
        monkeypatch.setattr(time, "monotonic", lambda: steady[0])
        queue.tick()
        set_clock(monkeypatch, jump)
        steady[0] += queue._cancel_seconds - 1
        queue.tick()
        assert ended == []
        steady[0] += 2
        queue.tick()
        assert ended == [os.getpid()]


@JUMPS
def test_an_idle_worker_ends_after_its_idle_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    with Workspace.open(tmp_path / "data") as studio:
        idle = worker.Worker(studio.layout, "cpu")
        set_clock(monkeypatch, jump)
        began = time.monotonic()
        idle.run(idle_seconds=0.4)
        assert time.monotonic() - began >= 0.4
