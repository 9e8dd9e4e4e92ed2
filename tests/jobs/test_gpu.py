"""Claims about trainings on two CUDA devices, on random bases of SDXL's architecture.

`python -m pytest -m gpu -s tests/jobs/test_gpu.py` prints the figures that assets/docs/performance.md shows.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch

from studio.bench.fullsize import noise_pictures, random_base
from studio.config import TrainConfig, build, resolve
from studio.events import Event, Finished, Step
from studio.families import get, sources
from studio.families.base import Base
from studio.jobs import ranks
from studio.jobs.folder import FolderRequests, JobFolder, Manifest
from studio.jobs.handlers import Warm, Work, base_values
from studio.library.layout import Layout
from studio.training import checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")]

CARDS = ("cuda:1", "cuda:0")  # not the order in which a library would count them
LOSS, DELTA = 1e-5, 1e-3  # fp32 without TF32: absolute, and the norm of a layer's difference to that of the layer


def made(tmp_path: Path, small: bool, side: int) -> tuple[Layout, Base]:
    noise_pictures(tmp_path / "set", 4, side)
    return Layout(tmp_path / "data").create(), sources.identify(random_base("sdxl", tmp_path / "base", small))


def trained(layout: Layout, base: Base, processes: int, **values: Any) -> tuple[Path, list[Event]]:
    """A training by so many processes on so many cards; its folder and what it said."""
    named = {"base": str(base.path), "images": "noise", "rank": 16, "seed": 1, "processes": processes, **values}
    config = resolve(build(TrainConfig, named), base.habits.get("train", {}), get("sdxl").facts.defaults["train"])
    manifest = Manifest(
        id=f"by-{processes}",
        kind="train",
        name=f"by-{processes}",
        config=named,
        settings=config.model_dump(mode="json"),
        base=base_values(base),
        paths={"images": str(layout.root.parent / "set")},
    )
    folder = JobFolder.create(layout.jobs, manifest)
    work = Work(folder, manifest, layout, FolderRequests(folder.path), Warm(CARDS[0]), CARDS[:processes])
    events = list(ranks.trained(work, processes))
    assert isinstance(events[-1], Finished), events[-1]
    return folder.path, events


def steps(events: list[Event]) -> list[Step]:
    return [event for event in events if isinstance(event, Step)]


def test_two_cards_train_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    layout, base = made(tmp_path, small=True, side=128)
    runs = [trained(layout, base, n, resolution=128, batch_size=4, steps=8, precision="fp32", learning_rate=1e-3) for n in (1, 2)]
    losses = [[event.loss for event in steps(events)] for _, events in runs]
    one, two = (checkpoint.adapter(folder / "checkpoints" / "step-000008").layers for folder, _ in runs)
    assert one.keys() == two.keys() and len(losses[0]) == 8
    loss = max(abs(a - b) for a, b in zip(*losses, strict=True))
    delta = max(float((two[path].delta() - layer.delta()).norm() / layer.delta().norm()) for path, layer in one.items())
    print("\n" + json.dumps({"loss_difference": loss, "delta_difference": delta, "losses": losses}))
    assert loss < LOSS and delta < DELTA


def test_two_cards_share_the_work_of_a_full_size_step(tmp_path: Path) -> None:
    layout, base = made(tmp_path, small=False, side=1024)
    runs = [trained(layout, base, n, resolution=1024, batch_size=2, steps=12) for n in (1, 2)]
    seconds = [statistics.median(event.seconds for event in steps(events)[3:]) for _, events in runs]
    losses = [[event.loss for event in steps(events)] for _, events in runs]
    machine = {"card": torch.cuda.get_device_name(), "torch": torch.__version__, "accelerate": accelerate.__version__, "nccl": torch.cuda.nccl.version()}
    print("\n" + json.dumps({**machine, "seconds": dict(zip(("one", "two"), seconds, strict=True)), "losses": losses}))
    assert seconds[1] < seconds[0]
