"""Full-size architectures with random weights through the studio's own code: train, export, draw.

    python -m studio.bench.fullsize sdxl flux --resolution 1024 --steps 20 --out DIR

Speed and memory do not depend on the values of the weights, so no download is needed. Every step is the product's:
the base is written as a diffusers folder and loaded by its family, pictures go through the cache, `training.loop.train`
trains, the kohya file is written, read back and compared, and one image is drawn with that file in the stack.
"""

import argparse
import json
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import psutil
import torch
from PIL import Image

from studio import config as settings
from studio.data.images import read_set
from studio.events import Checkpoint, Event, Loading, Started, Step
from studio.families import get, sources
from studio.families.parts import CONFIGS
from studio.generation.sampler import generate, open_base
from studio.lora import formats
from studio.training import checkpoint
from studio.training.loop import train

GIB = 2**30


class NoRequests:
    """Nobody asks anything of this run."""

    def pending(self) -> set[str]:
        return set()


def random_base(family: str, folder: Path, small: bool) -> Path:
    """A diffusers folder of the family's real architecture with random bf16 weights; `small` takes the demo base's sizes."""
    demo = sources.find(get(family).facts.default_base).path
    index = json.loads((demo / "model_index.json").read_text())
    for part, (library, kind) in ((name, value) for name, value in index.items() if isinstance(value, list) and value[0]):
        if (demo / part / "config.json").is_file():
            _random_model(library, kind, _config(family, part, demo if small else None), folder / part)
        else:
            source = CONFIGS / family / part
            shutil.copytree(source if source.is_dir() and not small else demo / part, folder / part)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _config(family: str, part: str, demo: Path | None) -> dict[str, Any]:
    return json.loads(((demo or CONFIGS / family) / part / "config.json").read_text())


def _random_model(library: str, kind: str, config: dict[str, Any], target: Path) -> None:
    import diffusers
    import transformers

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            if library == "diffusers":
                model: Any = getattr(diffusers, kind).from_config(config)
            else:
                cls: Any = getattr(transformers, kind)
                model = cls(cls.config_class.from_dict(config))
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(target, safe_serialization=True)


def noise_pictures(folder: Path, n: int, side: int, height: int = 0) -> Path:
    """A set of smooth random pictures with captions, square unless they have a height of their own."""
    folder.mkdir(parents=True)
    draw = numpy.random.default_rng(0)
    for i in range(n):
        small = Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=numpy.uint8))
        small.resize((side, height or side), Image.Resampling.BICUBIC).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"a picture of thing number {i}")
    return folder


@contextmanager
def measured(name: str, row: dict[str, Any]) -> Iterator[None]:
    """Wall seconds and peak memory of the block, into `row`."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    yield
    if cuda:
        torch.cuda.synchronize()
        row[f"{name}_peak_gib"] = round(torch.cuda.max_memory_reserved() / GIB, 2)
        torch.cuda.empty_cache()
    row[f"{name}_seconds"] = round(time.perf_counter() - start, 2)


@dataclass
class Start:
    """Where the seconds before the first step go, by the phases that are told, and how much main memory the process held meanwhile."""

    since: float = field(default_factory=time.perf_counter)
    phase: str = "settling"
    seconds: dict[str, float] = field(default_factory=dict)
    most: int = 0  # bytes

    def hear(self, event: Event) -> None:
        if not self.phase:
            return
        now = time.perf_counter()
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self.since
        self.since, self.most = now, max(self.most, psutil.Process().memory_info().rss)
        if isinstance(event, Loading):
            self.phase = event.phase
        elif isinstance(event, Started):
            self.phase = "first step"
        elif isinstance(event, Step):
            self.phase = ""

    def told(self) -> dict[str, Any]:
        found = {phase: round(seconds, 2) for phase, seconds in self.seconds.items()}
        return {"start_seconds": round(sum(self.seconds.values()), 2), "start_phases": found, "start_host_gib": round(self.most / GIB, 2)}


def run(family: str, resolution: int, steps: int, batch: int, small: bool, out: Path) -> dict[str, Any]:
    """One family from random base to image; the figures of the table."""
    facts = get(family).facts
    row: dict[str, Any] = {"family": family, "resolution": resolution, "steps": steps, "batch_size": batch}
    work = out / family
    shutil.rmtree(work, ignore_errors=True)
    with measured("build_base", row):
        base = sources.identify(random_base(family, work / "base", small))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    values = {"base": str(base.path), "images": "noise", "steps": steps, "resolution": resolution, "batch_size": batch, "rank": 16, "seed": 1}
    config = settings.resolve(settings.build(settings.TrainConfig, values), base.habits.get("train", {}), facts.defaults["train"])
    images = read_set(noise_pictures(work / "set", 4, resolution))
    seconds, losses, last = [], [], None
    start = Start()
    with measured("train", row):
        for event in train(config, base, images, work / "job", work / "cache", requests=NoRequests(), preview=None, device=device):
            start.hear(event)
            if isinstance(event, Step):
                seconds.append(event.seconds)
                losses.append(event.loss)
            elif isinstance(event, Checkpoint):
                last = event
    assert last is not None
    row |= start.told()
    row |= {"step_seconds_median": round(statistics.median(seconds[3:] or seconds), 4), "first_loss": losses[0], "last_loss": losses[-1]}
    row["gradient_checkpointing"] = config.gradient_checkpointing
    with measured("export", row):
        adapter = checkpoint.adapter(work / "job" / last.path)
        file = work / f"{family}-lora.safetensors"
        formats.write(adapter, file, format="kohya", dtype="fp16", metadata={})
        formats.verify(file, adapter)
    row |= {"modules": len(adapter.layers), "file_mib": round(file.stat().st_size / 2**20, 1)}
    values = {"base": str(base.path), "prompt": "a picture of thing number 2", "seed": 1, "width": resolution, "height": resolution}
    drawing = settings.resolve(settings.build(settings.GenerateConfig, values), base.habits.get("generate", {}), facts.defaults["generate"])
    with measured("load_pipeline", row):
        c = open_base(base, drawing.precision, torch.device(device))
    with measured("generate", row):
        for _ in generate(c, [(formats.read(file), 0.8)], drawing, work / "images", requests=NoRequests(), names=["bench"]):
            pass
    row["generate_steps"] = drawing.steps
    return row


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m studio.bench.fullsize", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("families", nargs="+")
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="the demo bases' sizes, to try the script on a CPU")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    for family in chosen.families:
        row = run(family, chosen.resolution, chosen.steps, chosen.batch_size, chosen.small, chosen.out)
        sys.stdout.write(json.dumps({"machine": machine, "torch": torch.__version__, **row}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
