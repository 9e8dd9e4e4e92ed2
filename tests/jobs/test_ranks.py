"""One training by two processes on the processor, against the same training by one."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

import pytest
import torch

from studio.config import TrainConfig, build
from studio.data.images import read_set
from studio.errors import RunError
from studio.events import Checkpoint, Event, Finished, Step, Validation, from_line, to_line
from studio.families import sources
from studio.jobs import ranks
from studio.jobs.folder import FolderRequests, JobFolder, Manifest
from studio.jobs.handlers import Warm, Work, base_values, stepping
from studio.library.layout import Layout
from studio.training import checkpoint
from tests.forked import Forked, Forks
from tests.jobs.conftest import draw_pictures

TOLERANCE = 1e-5  # fp32: only the order of sums differs


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    root = tmp_path_factory.mktemp("ranks")
    draw_pictures(root / "circles", 3)
    return Layout(root / "data").create()


@pytest.fixture
def processes(forks: Forks, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Forked]]:
    """Those of a test, in their order; test_reservation.py trains with ones that begin from nothing."""
    found: list[Forked] = []

    def started(arguments: Sequence[str], environ: Mapping[str, str]) -> Forked:
        found.append(forks.rank(arguments, environ))
        return found[-1]

    monkeypatch.setattr(ranks, "started", started)
    yield found
    for process in found:
        process.kill()


def living(processes: list[Forked]) -> list[Forked]:
    return [process for process in processes if process.poll() is None]


def work(layout: Layout, id: str, **changes: object) -> Work:
    values = {"base": "demo-sdxl", "images": "circles", "resolution": 64, "batch_size": 2, "rank": 2, "seed": 5, "steps": 4}
    values |= {"target_pattern": "mid_block.*attn", **changes}
    config = build(TrainConfig, values)
    paths = {"images": str(layout.root.parent / "circles")}
    base = base_values(sources.find("demo-sdxl"))
    manifest = Manifest(id=id, kind="train", name=id, config=values, settings=config.model_dump(mode="json"), base=base, paths=paths)
    folder = JobFolder.create(layout.jobs, manifest)
    return Work(folder, manifest, layout, FolderRequests(folder.path), Warm("cpu"))


def steps(events: list[Event]) -> list[Step]:
    return [event for event in events if isinstance(event, Step)]


def test_two_processes_train_as_one_does_with_uneven_batches(layout: Layout, processes: list[Forked]) -> None:
    assert len(read_set(layout.root.parent / "circles").pictures) == 3, "batches of two and one: the second process has no share of the last"
    alone, together = work(layout, "alone", gradient_accumulation=1), work(layout, "together", processes=2)
    one, two = list(stepping(alone)), list(ranks.trained(together, 2))
    assert isinstance(two[-1], Finished)
    assert [event.kind for event in two if event.kind != "loading"] == [event.kind for event in one if event.kind != "loading"]
    assert len(steps(two)) == 4
    for a, b in zip(steps(one), steps(two), strict=True):
        assert a.loss == pytest.approx(b.loss, abs=TOLERANCE) and a.gradient_norm == pytest.approx(b.gradient_norm, rel=1e-4)
    weights = [checkpoint.adapter(job.folder.path / "checkpoints" / "step-000004").layers for job in (alone, together)]
    assert weights[0].keys() == weights[1].keys()
    for path, layer in weights[0].items():
        torch.testing.assert_close(weights[1][path].delta(), layer.delta(), atol=TOLERANCE, rtol=1e-3)
    assert len(list((together.folder.path / "checkpoints").iterdir())) == 1, "one process writes"


def test_early_stopping_ends_all_processes_at_the_same_step(layout: Layout, processes: list[Forked]) -> None:
    """The first process looks at the held-out pictures; the others hear of the end at the same step, or would wait for ever."""
    held = {"validation_fraction": 0.4, "validation_every": 1, "early_stop": 1, "learning_rate": 0.3, "steps": 60}
    events = list(ranks.trained(work(layout, "patient", processes=2, **held), 2))
    looks = [event for event in events if isinstance(event, Validation)]
    assert isinstance(events[-1], Finished) and events[-1].result["stopped_early"] and events[-1].step < 60
    assert events[-1].step == len(steps(events)) == looks[-1].step and looks[-1].stale == 1
    assert events[-1].result["checkpoint"] == f"checkpoints/{checkpoint.name_of(events[-1].result['best_step'])}"


def until_checkpoint(events: Iterator[Event]) -> None:
    assert any(isinstance(event, Checkpoint) for event in events)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_dead_process_ends_the_training_in_one_sentence_and_keeps_the_checkpoint(layout: Layout, processes: list[Forked]) -> None:
    job = work(layout, "bereaved", processes=2, steps=5000, save_every=2)
    events = ranks.trained(job, 2)
    until_checkpoint(events)
    os.kill(processes[1].pid, signal.SIGKILL)
    with pytest.raises(RunError, match="process 2 of 2 was killed by the system"):
        list(events)
    assert len(processes) == 2 and not living(processes)
    kept = checkpoint.latest(job.folder.path / "checkpoints")
    assert kept is not None and kept.step >= 2


@pytest.mark.parametrize(("wish", "last"), [("finish", "finished"), pytest.param("cancel", "cancelled", marks=pytest.mark.long)])
def test_a_wish_reaches_all_processes(layout: Layout, processes: list[Forked], wish: str, last: str) -> None:
    job = work(layout, wish, processes=2, steps=5000, save_every=1)
    events = ranks.trained(job, 2)
    until_checkpoint(events)
    job.folder.request(wish)  # type: ignore[arg-type]
    assert list(events)[-1].kind == last
    assert len(processes) == 2 and not living(processes), "none is left"


def test_every_process_has_a_card_that_was_set_aside_and_no_other() -> None:
    assert ranks.places(["cuda:3", "cuda:1"], 2) == ["cuda:3", "cuda:1"]
    assert ranks.places(["cpu:0", "cpu:1"], 2) == ranks.places(["cpu"], 2) == ["cpu", "cpu"]
    with pytest.raises(RunError, match="1 GPUs were set aside"):
        ranks.places(["cuda:0"], 2)


def test_the_processes_see_their_cards_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert ranks.seen(["cuda:3", "cuda:1"]) == {"CUDA_VISIBLE_DEVICES": "3,1"} and ranks.seen(["cpu", "cpu"]) == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-12ab,6")
    assert ranks.seen(["cuda:1", "cuda:2"]) == {"CUDA_VISIBLE_DEVICES": "GPU-12ab,6"}


def test_the_first_process_may_write_for_long_after_the_others_are_done(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a checkpoint of a full-size model. Two programs in the processes' place, which speak as they do."""
    kept = Checkpoint(step=1, path="checkpoints/step-000001", adapter="a", sha256="0", bytes=1)
    words = [to_line(Step(step=1, total=1)), to_line(kept), to_line(Finished(step=1))]
    first = f"import sys, time\nfor line in {words!r}:\n    print(line, end='', flush=True)\n    time.sleep(1)"

    def start(self: ranks._Ranks, rank: int, *_: object) -> "subprocess.Popen[str]":
        return subprocess.Popen([sys.executable, "-S", "-c", "" if rank else first], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    monkeypatch.setattr(ranks._Ranks, "_start", start)
    monkeypatch.setattr(ranks, "LAST_WORDS_SECONDS", 0.5)
    assert [event.kind for event in ranks.trained(work(layout, "slow-end", processes=2), 2)] == ["step", "checkpoint", "finished"]


@pytest.mark.long
def test_torchrun_starts_the_same_training_by_hand(layout: Layout) -> None:
    job = work(layout, "by-hand")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--module", "studio.jobs.rank"]
    done = subprocess.run([*command, str(layout.root), "by-hand", "auto"], capture_output=True, text=True, timeout=500, check=False)
    events = [from_line(line.encode()) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0 and events[-1].kind == "finished", done.stderr[-2000:]
    assert [event.loss for event in steps(events)] == pytest.approx([event.loss for event in steps(list(stepping(work(layout, "by-one"))))], abs=TOLERANCE)
    assert (job.folder.path / "checkpoints" / "step-000004").is_dir()
