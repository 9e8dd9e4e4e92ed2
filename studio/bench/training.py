"""One row of the table for training: seconds a step, memory and losses of one way to run the same step."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from studio import config as settings
from studio.bench import reference, whole
from studio.bench.cases import REFERENCES, Case
from studio.bench.floor import synchronize
from studio.bench.subjects import Subject
from studio.config import TrainConfig
from studio.data.cache import release
from studio.lora import attach
from studio.lora.attach import Attached
from studio.training import fast, objective
from studio.training.graph import Engine
from studio.training.speed import choose
from studio.training.step import Micro, Stepper

GIB = 2**30
SPEEDS = {"graph": "graph", "compile": "compile", "auto": "auto", "run": "auto", "fp8": "compile"}  # mode of a row -> setting
WARM = 4  # steps before the clock runs; their losses are compared between modes
Step = Callable[[Micro], Callable[[], float]]  # takes a step; the loss is read by calling what it gives
BLOCKS = 4  # the steps are timed in so many stretches, each ended by waiting for the device


def measure(case: Case, subject: Subject, steps: int, rank: int) -> dict[str, Any]:
    """The figures of a training row: seconds, pictures a second, peak memory in GiB, first losses."""
    c = subject.components
    config = _config(case, subject, rank)
    if case.mode == "run":
        return whole.measure(case, subject, config, steps)
    micros = [subject.micro(case.resolution, case.batch, number) for number in range(WARM)]
    release(c.device)
    if c.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(c.device)
    began = time.perf_counter()
    with _attached(subject, config) as attached, _stepping(case, subject, attached, config) as (step, facts):
        losses, first = [], 0.0
        for micro in micros:
            losses.append(step(micro)())
            first = first or time.perf_counter() - began
        synchronize(c.device)
        ready = time.perf_counter() - began
        seconds = _timed(step, micros, steps, c.device)
        peak = round(torch.cuda.max_memory_reserved(c.device) / GIB, 2) if c.device.type == "cuda" else None
        found = facts()
    found |= {"seconds": round(seconds, 5), "pictures_per_second": round(case.batch / seconds, 3)}
    return found | {"first_step_seconds": round(first, 2), "ready_seconds": round(ready, 2), "peak_reserved_gib": peak, "losses": losses}


def _config(case: Case, subject: Subject, rank: int) -> TrainConfig:
    base = subject.components.base
    values = {"base": base.name, "images": "random", "rank": rank, "alpha": rank, "seed": 1, "batch_size": case.batch, "resolution": case.resolution}
    chosen = settings.build(
        TrainConfig,
        values
        | {"precision": case.precision, "learning_rate": 1e-4, "steps": 1500, "speed": SPEEDS.get(case.mode, "eager"), "fp8_products": case.mode == "fp8"},
    )
    return settings.resolve(chosen, base.habits.get("train", {}), subject.family.facts.defaults["train"])


@contextmanager
def _attached(subject: Subject, config: TrainConfig) -> Iterator[Attached]:
    """Within, the base carries a fresh adapter, the same for every mode."""
    torch.manual_seed(config.seed)
    attached = attach.attach(subject.components, config)
    denoiser: Any = subject.components.denoiser
    denoiser.train()
    try:
        yield attached
    finally:
        denoiser.disable_gradient_checkpointing()
        attach.detach(subject.components)
        release(subject.components.device)


@contextmanager
def _stepping(case: Case, subject: Subject, attached: Attached, config: TrainConfig) -> "Iterator[tuple[Step, Callable[[], dict[str, Any]]]]":
    """One optimizer step as a function of a batch, and what is to be told of the way it was taken."""
    c = subject.components
    denoiser: Any = c.denoiser
    goal = objective.choose(c.objective, c.parts["scheduler"].config, denoiser.config, config)
    rate = config.learning_rate or 0.0
    if case.mode in REFERENCES:
        if case.mode == "plain-checkpointed":
            denoiser.enable_gradient_checkpointing()
        plain = reference.loop(subject, goal, rate, config.max_gradient_norm)
        with _safe_attention():
            yield lambda micro, plain=plain: partial(float, plain(micro)), dict
        return
    speed = choose(attached, config, steps=config.steps or 0, shapes=1)
    made = fast.prepare(attached, speed, fp8=config.fp8_products)
    stepper = Stepper(attached, subject.family, goal, config, made.fused if made else None)
    engine = Engine(stepper, record=c.device.type == "cuda") if made else None

    def step(micro: Micro) -> Callable[[], float]:
        if engine is None:
            outcome = stepper.update(stepper.accumulate([micro], case.batch), rate)
            return lambda: outcome.loss
        engine.accumulate([micro], case.batch)
        late = engine.update(rate)
        return lambda: late.outcome().loss

    try:
        yield step, lambda: speed.facts() | {"trouble": engine.trouble if engine else ""}
    finally:
        if engine:
            engine.forget()
        if made:
            made.undo()


@contextmanager
def _safe_attention() -> Iterator[None]:
    """Without cuDNN's attention: under autocast its backward pass ended in an illegal memory access on Flux (torch 2.11, H200)."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _timed(step: "Step", micros: list[Micro], steps: int, device: torch.device) -> float:
    """Median seconds of a step over a few stretches of steps."""
    stretches, each = [], max(1, steps // BLOCKS)
    for _ in range(BLOCKS):
        began = time.perf_counter()
        for number in range(each):
            step(micros[number % len(micros)])
        synchronize(device)
        stretches.append((time.perf_counter() - began) / each)
    return statistics.median(stretches)
