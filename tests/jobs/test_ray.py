"""Jobs on a Ray cluster of this machine: run, cancelled, found again after a restart, gone on with after their worker was killed."""

import importlib.util
import ipaddress
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from studio.config import TrainConfig, build
from studio.errors import SettingsError
from studio.events import Event, Exported, Failed, Step, Warned
from studio.jobs import backends, stretch
from studio.jobs.backends.cluster import Cluster
from studio.jobs.backends.head import Head
from studio.jobs.devices import devices, wanted
from studio.jobs.folder import Claim, EventWriter, JobFolder
from studio.jobs.processes import alive, own_start
from studio.library.layout import Layout
from studio.workspace import Workspace
from tests.faults import invariants
from tests.forked import Forks
from tests.jobs.conftest import SHORT, draw_pictures
from tests.jobs.test_worker import until_step, wait

Unbroken = tuple[dict[int, float | None], dict[str, bytes]]
RUN = {**SHORT, "steps": 8, "save_every": 3, "flip": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder whose cluster is shared by the tests of this file."""
    root = tmp_path_factory.mktemp("ray")
    with Workspace.open(root / "data") as studio:
        studio.sets.import_folder("Circles", draw_pictures(root / "circles"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # sums are taken in the same order everywhere
        yield root / "data"
    import ray

    ray.shutdown()  # before the cluster, which the client would look for
    Head(Layout(root / "data")).stop()


@pytest.fixture
def studio(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    monkeypatch.setenv("STUDIO_JOBS", "ray")
    monkeypatch.setenv("STUDIO_DEVICE", "cpu")
    workspace = Workspace.open(folder)
    yield workspace
    leave(workspace)


def leave(studio: Workspace) -> None:
    """Nobody hands out jobs any more, as when the studio is killed: the cluster and what runs there are left alone."""
    studio._loop._stop = True
    studio._loop.wake()
    if studio._loop._thread is not None:
        studio._loop._thread.join()
    studio._dispatcher._lock.release()


def train(studio: Workspace, **values: object) -> str:
    return studio.jobs.train(build(TrainConfig, {**RUN, **values})).id


def said(studio: Workspace, id: str) -> list[Event]:
    return JobFolder(studio.layout.jobs / id).read()[0]


def losses(events: list[Event]) -> dict[int, float | None]:
    return {event.step: event.loss for event in events if isinstance(event, Step)}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Unbroken:
    """Losses, last weights and optimizer memory of the run of these tests when nothing happens to it, by a worker of this machine."""
    root = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch, forks.as_workers():
        patch.setenv("STUDIO_DEVICE", "cpu")
        with Workspace.open(root / "data") as studio:
            studio.sets.import_folder("Circles", draw_pictures(root / "circles"))
            id = train(studio, name="unbroken")
            events = list(studio.jobs.follow(id))
            assert events[-1].kind == "finished", studio.jobs.show(id).message
            return losses(events), invariants.result(studio, id)


def test_a_killed_worker_is_replaced_and_the_run_equals_the_unbroken_one(studio: Workspace, unbroken: Unbroken) -> None:
    """One of this machine: the same numbers come out of a cluster, and out of a run that went on there."""
    studio.start()
    id = train(studio, name="killed")
    until_step(studio, id, 4)
    folder = JobFolder(studio.layout.jobs / id)
    first = folder.claim()
    assert first is not None and first.cluster and first.pid != os.getpid() and studio.jobs.show(id).device == "ray-cpu:0"
    os.kill(first.pid, signal.SIGKILL)
    assert studio.status().backend == "a Ray cluster of this machine: 1 machine, no GPU"
    assert [device.name for device in studio.status().devices] == ["ray-cpu:0"]
    assert studio.reach() == f"run on {studio.status().backend}"
    speaks_to_this_machine_alone_and_wants_its_token(Head(studio.layout))
    last = list(studio.jobs.follow(id))[-1]
    assert last.kind == "finished", studio.jobs.show(id).message
    events = said(studio, id)
    assert (losses(events), invariants.result(studio, id)) == unbroken, "bitwise: every loss, tensor and optimizer state"
    assert [segment.why for segment in folder.manifest().segments] == ["new", "retry"]
    warnings = [event.message for event in events if isinstance(event, Warned)]
    told = [f"the worker ended unexpectedly; it goes on from the checkpoint of step {step} (retry 1 of 3)" for step in (3, 6)]
    assert warnings in ([told[0]], [told[1]]), "of the last one, on a machine that steps while this one looks"
    assert studio.jobs.show(id).result["warnings"] == warnings
    assert [row.name for row in studio.library.list() if row.run == id] == ["killed"], "one adapter"
    wait(lambda: not list(studio.layout.workers.glob("ray-*/")))


def speaks_to_this_machine_alone_and_wants_its_token(head: Head) -> None:
    process = psutil.Process(head._known()["pid"])  # type: ignore[index]
    connections = [connection for one in [process, *process.children(recursive=True)] for connection in inet(one)]
    open_to = {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}
    spoken_to = {connection.raddr.ip for connection in connections if connection.raddr}
    assert open_to and all(ipaddress.ip_address(ip.removeprefix("::ffff:")).is_loopback for ip in open_to), open_to
    assert all(ipaddress.ip_address(ip.removeprefix("::ffff:")).is_loopback for ip in spoken_to), spoken_to
    assert head._token.stat().st_mode & 0o077 == 0 and process.environ()["RAY_AUTH_MODE"] == "token"
    assert process.environ()["RAY_USAGE_STATS_ENABLED"] == "0"


def inet(process: psutil.Process) -> list[Any]:
    """What a process listens to and speaks with; nothing if it has ended meanwhile, as Ray's short-lived helpers do."""
    try:
        return list(process.net_connections("inet"))
    except psutil.NoSuchProcess:
        return []


def test_the_next_studio_finds_a_running_job_and_can_cancel_it(studio: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the cluster's address, as one that was not started by a studio."""
    studio.start()
    id, later = train(studio, name="long", steps=5000), train(studio, name="later")
    until_step(studio, id, 2)
    before = JobFolder(studio.layout.jobs / id).claim()
    assert before is not None and studio.jobs.show(later).state == "queued", "the processors are taken"
    leave(studio)

    host, port = Head(studio.layout).address() or ("", 0)
    monkeypatch.setenv("STUDIO_JOBS", f"ray://{host}:{port}")
    again = Workspace.open(folder)
    again.start()
    wait(lambda: again.status().backend == f"Ray at {host}:{port}: 1 machine, no GPU")
    until_step(again, id, len(losses(said(again, id))) + 2)
    assert JobFolder(again.layout.jobs / id).claim() == before
    again.jobs.cancel(later)
    again.jobs.cancel(id)
    wait(lambda: again.jobs.show(id).state == "cancelled")
    assert "checkpoint" in again.jobs.show(id).kept
    wait(lambda: not alive(before.pid, before.started))
    leave(again)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_a_cluster_that_does_not_answer_is_told_in_a_line_and_nothing_is_lost(tmp_path: Path) -> None:
    layout = Layout(tmp_path).create()
    port = free_port()
    cluster = Cluster(layout, ("127.0.0.1", port))
    assert cluster.look() == f"nothing answers at 127.0.0.1:{port}; start the Ray cluster, or set STUDIO_JOBS=local"
    claim = Claim(pid=os.getpid(), started=own_start() - 60, segment=1, device="cpu", cluster="127.0.0.1")
    assert cluster.alive(cluster.home("a", 1, "ray-cpu:0", ""), claim), "nobody knows, so nothing is begun a second time"
    assert cluster.devices() == [] and cluster.shown() == f"Ray at 127.0.0.1:{port}"


def test_the_setting_is_checked_and_a_missing_package_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path).create()
    for wish in ("slurm", "ray://", "ray://host", "10.0.0.1:6379"):
        monkeypatch.setenv("STUDIO_JOBS", wish)
        with pytest.raises(SettingsError, match="use local, ray"):
            backends.chosen(layout, devices, "")
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else there(name))
    monkeypatch.setenv("STUDIO_JOBS", "ray://10.0.0.1:10001")
    with pytest.raises(SettingsError, match=r"pip install 'lora-studio\[ray\]'"):
        Workspace.open(tmp_path / "data")


def test_retries_are_bounded_and_never_repeat_what_was_delivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Workspace.open(tmp_path / "data") as studio:
        studio.sets.import_folder("Circles", draw_pictures(tmp_path / "circles"))
        id = train(studio, name="often")
        folder = JobFolder(studio.layout.jobs / id)
        for _ in range(3):
            assert studio._dispatcher._change(id, "queued", state="running")
            assert stretch.again(studio._db, folder, "the worker ended", 3)
        assert studio._dispatcher._change(id, "queued", state="running")
        assert not stretch.again(studio._db, folder, "the worker ended", 3)
        assert [event.message[-14:] for event in folder.read()[0] if isinstance(event, Warned)] == [f"(retry {n} of 3)" for n in (1, 2, 3)]

        export = JobFolder.create(studio.layout.jobs, folder.manifest().model_copy(update={"id": "0" * 20, "kind": "merge"}))
        writer = EventWriter(export.events_file)
        writer.append(Exported(path="output/a.safetensors", report={}))
        writer.append(Failed(message="the worker was told to end", error="Interrupted"))
        writer.close()
        assert not stretch.again(studio._db, export, "the worker ended", 3)


def test_a_job_has_as_many_gpus_as_processes_but_of_one_machine_and_processors_are_shared(tmp_path: Path) -> None:
    cluster = Cluster(Layout(tmp_path).create(), ("127.0.0.1", 1))
    cluster._gpus, cluster._cpus = [2, 4], [16, 16, 16]
    names = [device.name for device in cluster.devices()]
    assert names == [f"ray-cuda:{i}" for i in range(6)] and cluster.together() == 4
    assert wanted("train", {"processes": 3}, names, 4) == 3 and wanted("train", {"processes": 5}, names, 4) == 5, "which is then too many"
    assert wanted("generate", {"processes": 3}, names, 4) == 1
    cluster._gpus = []
    assert [device.name for device in cluster.devices()] == ["ray-cpu:0", "ray-cpu:1", "ray-cpu:2"]
    assert wanted("train", {"processes": 3}, ["ray-cpu:0", "ray-cpu:1"], cluster.together()) == 1
