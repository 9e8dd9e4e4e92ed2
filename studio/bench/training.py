"""One row of the table for training: seconds a step, memory and losses of one way to run the same step."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from studio import config as settings
from studio.bench import reference
from studio.bench.cases import REFERENCES, Case
from studio.bench.floor import synchronize
from studio.bench.subjects import Subject
from studio.config import TrainConfig
from studio.data.cache import release
from studio.lora import attach
from studio.training import objective
from studio.training.step import Micro, Stepper

GIB = 2**30
WARM = 4  # steps before the clock runs; their losses are compared between modes
BLOCKS = 4  # the steps are timed in so many stretches, each ended by waiting for the device


def measure(case: Case, subject: Subject, steps: int, rank: int) -> dict[str, Any]:
    """The figures of a training row: seconds, pictures a second, peak memory in GiB, first losses."""
    c = subject.components
    config = _config(case, subject, rank)
    micros = [subject.micro(case.resolution, case.batch, number) for number in range(WARM)]
    release(c.device)
    if c.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(c.device)
    with _attached(subject, config):
        began = time.perf_counter()
        step = _step(case, subject, config)
        losses, first = [], 0.0
        for micro in micros:
            losses.append(step(micro))
            first = first or time.perf_counter() - began
        synchronize(c.device)
        ready = time.perf_counter() - began
        seconds = _timed(step, micros, steps, c.device)
    found = {"seconds": round(seconds, 5), "pictures_per_second": round(case.batch / seconds, 3)}
    peak = round(torch.cuda.max_memory_reserved(c.device) / GIB, 2) if c.device.type == "cuda" else None
    return found | {"first_step_seconds": round(first, 2), "ready_seconds": round(ready, 2), "peak_reserved_gib": peak, "losses": losses}


def _config(case: Case, subject: Subject, rank: int) -> TrainConfig:
    base = subject.components.base
    values = {"base": base.name, "images": "random", "rank": rank, "alpha": rank, "seed": 1, "batch_size": case.batch, "resolution": case.resolution}
    chosen = settings.build(TrainConfig, values | {"precision": case.precision, "learning_rate": 1e-4, "steps": 1000})
    return settings.resolve(chosen, base.habits.get("train", {}), subject.family.facts.defaults["train"])


@contextmanager
def _attached(subject: Subject, config: TrainConfig) -> Iterator[None]:
    """Within, the base carries a fresh adapter, the same for every mode."""
    torch.manual_seed(config.seed)
    attach.attach(subject.components, targets=config.targets, rank=config.rank or 0, alpha=config.alpha or 0)
    denoiser: Any = subject.components.denoiser
    denoiser.train()
    try:
        yield
    finally:
        denoiser.disable_gradient_checkpointing()
        attach.detach(subject.components)
        release(subject.components.device)


def _step(case: Case, subject: Subject, config: TrainConfig) -> Callable[[Micro], float]:
    c = subject.components
    denoiser: Any = c.denoiser
    goal = objective.choose(c.objective, c.parts["scheduler"].config, denoiser.config, config.min_snr_gamma, config.flow_shift)
    if case.mode in REFERENCES:
        if case.mode == "plain-checkpointed":
            denoiser.enable_gradient_checkpointing()
        return reference.loop(subject, goal, config.learning_rate or 0.0, config.max_gradient_norm)
    stepper = Stepper(c, subject.family, goal, config)

    def step(micro: Micro) -> float:
        return stepper.update(stepper.accumulate([micro], case.batch), config.learning_rate or 0.0).loss

    return step


def _timed(step: Callable[[Micro], object], micros: list[Micro], steps: int, device: torch.device) -> float:
    """Median seconds of a step over a few stretches of steps."""
    stretches, each = [], max(1, steps // BLOCKS)
    for _ in range(BLOCKS):
        began = time.perf_counter()
        for number in range(each):
            step(micros[number % len(micros)])
        synchronize(device)
        stretches.append((time.perf_counter() - began) / each)
    return statistics.median(stretches)
