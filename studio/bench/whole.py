"""One row of the table for a whole run: `training.loop.train` itself, with its cache, order, events and checkpoint, beside the bare loop."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from studio.bench import imagined
from studio.bench.cases import Case
from studio.bench.fullsize import GIB, NoRequests, noise_pictures
from studio.bench.subjects import Subject
from studio.config import TrainConfig
from studio.data.cache import release
from studio.data.images import read_set
from studio.events import Loading, Started, Step, Warned
from studio.training.loop import train

SETTLED = 4  # steps before the clock runs: shapes are recorded or compiled in them
PICTURES = 4


def measure(case: Case, subject: Subject, config: TrainConfig, steps: int) -> dict[str, Any]:
    """Seconds a step of a whole run, and from its start to the end of step 1, by phase. Of a base with random weights no file is read."""
    device, base = subject.components.device, subject.components.base
    there = base.name != "random"
    with tempfile.TemporaryDirectory() as folder, _aside(subject), nullcontext(base) if there else imagined.base(case.family) as base:
        work = Path(folder)
        images = read_set(noise_pictures(work / "set", PICTURES, case.resolution))
        wanted = config.model_copy(update={"base": base.name, "steps": SETTLED + steps})
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        clock = Clock()
        for event in train(wanted, base, images, work / "job", work / "cache", requests=NoRequests(), preview=None, device=device.type):
            clock.hear(event)
        peak = round(torch.cuda.max_memory_reserved(device) / GIB, 2) if device.type == "cuda" else None
    return clock.figures(case.batch) | {"peak_reserved_gib": peak}


class Clock:
    """Reads what a run says, with the time at which it says it."""

    def __init__(self) -> None:
        self.began = self.phase_began = time.perf_counter()
        self.phase = "Checking"
        self.phases: dict[str, float] = {}
        self.steps: dict[int, float] = {}
        self.facts: dict[str, Any] = {}
        self.warned: list[str] = []

    def hear(self, event: object) -> None:
        now = time.perf_counter()
        if isinstance(event, Loading) and event.phase != self.phase:
            self._turn(event.phase, now)
        elif isinstance(event, Started):
            self._turn("First step", now)
            self.facts = {name: event.facts[name] for name in ("speed", "speed_reason") if name in event.facts}
        elif isinstance(event, Step):
            if not self.steps:
                self._turn("", now)
            self.steps[event.step] = now
        elif isinstance(event, Warned):
            self.warned.append(event.message)

    def figures(self, batch: int) -> dict[str, Any]:
        last = max(self.steps)
        seconds = (self.steps[last] - self.steps[SETTLED]) / (last - SETTLED)
        found = {"seconds": round(seconds, 5), "pictures_per_second": round(batch / seconds, 3), "losses": []}
        found |= {"first_step_seconds": round(self.steps[min(self.steps)] - self.began, 2)}
        return found | {"phases": {name: round(spent, 3) for name, spent in self.phases.items()}, "warned": self.warned, **self.facts}

    def _turn(self, phase: str, now: float) -> None:
        self.phases[self.phase] = self.phases.get(self.phase, 0.0) + now - self.phase_began
        self.phase, self.phase_began = phase, now


@contextmanager
def _aside(subject: Subject) -> Iterator[None]:
    """The table's own copy of the denoiser waits in main memory, so that the card is the run's."""
    denoiser: Any = subject.components.denoiser
    device = subject.components.device
    denoiser.to("cpu")
    release(device)
    try:
        yield
    finally:
        denoiser.to(device)
