"""Training steps on a card of less memory: random full-size weights under a cap of the allocator, with bits and waiting blocks as asked for.

    python -m studio.bench.smallcards sdxl:1024:full:0:graph:0 sdxl:1024:int8:0.5:graph:8 flux:1024:full:0.3:graph:24 --steps 8

A row is family : resolution : base format : share of waiting blocks : speed : cap in GiB, 0 for none; and after one more colon the share of
the other blocks whose activations are recomputed, left out it is as much as memory asks for. Speeds are eager, graph, compile, and fp8 for
graph with 8-bit products. Rows of one family and format share one base; their steps begin with the same batches and the same adapter, so
that their losses compare.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from studio import config as settings
from studio.bench import subjects, training
from studio.bench.floor import synchronize
from studio.bench.subjects import Subject
from studio.config import TrainConfig
from studio.data.cache import release
from studio.families import offload, quantised
from studio.families.away import SLOTS
from studio.footprint.estimate import Card, Job, Way, estimate
from studio.training import fast, objective, placing
from studio.training.graph import Engine
from studio.training.lean import recompute
from studio.training.speed import choose
from studio.training.step import Micro, Stepper
from studio.training.taken import Known

GIB = 2**30
SPEEDS = {"fp8": "graph"}  # of a row -> setting
FIRST = 3  # steps whose losses are told and whose time is not


@dataclass(frozen=True)
class Row:
    family: str
    resolution: int
    format: str
    share: float
    speed: str
    cap: float  # GiB; 0 is none
    recomputed: float | None = None

    @classmethod
    def of(cls, text: str) -> "Row":
        family, resolution, format, share, speed, cap, *more = text.split(":")
        return cls(family, int(resolution), format, float(share), speed, float(cap), *map(float, more))


def table(rows: list[Row], weights: str, steps: int, device: torch.device, buffers: int = SLOTS) -> Iterator[dict[str, Any]]:
    """The figures of every row; one that fails says why."""
    subject, loaded = None, None
    for row in rows:
        if loaded != (row.family, row.format):
            subject = None
            release(device)
            subject = subjects.load(row.family, weights, torch.bfloat16 if device.type == "cuda" else torch.float32, device)
            if row.format != "full":
                quantised.quantise(subject.components.denoiser, row.format, device)
            loaded = (row.family, row.format)
        assert subject is not None
        try:
            yield asdict(row) | measure(row, subject, steps, buffers)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            yield asdict(row) | {"error": " ".join(str(error).split())[:300]}
        release(device)


def measure(row: Row, subject: Subject, steps: int, buffers: int = SLOTS) -> dict[str, Any]:
    """Seconds of a step, peak memory in GiB, first losses. buffers: of the ring."""
    c, config = subject.components, _config(row, subject)
    denoiser: Any = c.denoiser
    waiting = offload.names(denoiser, row.share)
    with training._attached(subject, config) as attached:
        if waiting:
            # As a run places it: weights that left the device would leave holes between those that stay, which a recording cannot use.
            offload.settle(denoiser, (), placing.CPU)
            release(c.device)
            offload.settle(denoiser, waiting, c.device, placing._trained)
        speed = choose(attached, config, steps=steps, shapes=1)
        given = 1.0 if speed.mode == "eager" and row.recomputed is None else row.recomputed
        if given:
            recompute(denoiser, given)
        made = fast.prepare(attached, speed, fp8=config.fp8_products)
        began = time.perf_counter()
        ring = offload.wait(denoiser, waiting, c.device, placing._trained, placing._joined, buffers) if waiting else None
        found: dict[str, Any] = {"placing_seconds": round(time.perf_counter() - began, 2), "waiting_gib": round(ring.bytes / GIB, 2) if ring else 0.0}
        goal = objective.choose(c.objective, c.parts["scheduler"].config, denoiser.config, config)
        stepper = Stepper(attached, subject.family, goal, config, made.fused if made else None)
        engine = Engine(stepper, record=c.device.type == "cuda", spared=0.0 if given is None else 1.0, ring=ring) if made else None
        micros = [subject.micro(row.resolution, 1, number) for number in range(FIRST)]
        try:
            with _capped(row.cap, c.device):
                found |= _timed(stepper, engine, micros, steps, config.learning_rate or 0.0)
        finally:
            if engine:
                engine.forget()
            if ring:
                ring.rest()
                for block in ring.blocks:
                    block.bind(block.home.to(c.device))
                ring.close()
            if made:
                made.undo()
    if c.device.type == "cuda":
        way = Way(row.format, given or 0.0, row.share, buffers, recorded=engine is not None)
        found["planned_reserved_gib"] = round(_planned(row, subject, config, way) / GIB, 2)
    found["recomputed"] = given if given is not None or engine is None else {2: 0.0, 1: 0.5, 0: 1.0}[len(engine.shares)]
    return found | {"mode": speed.mode, "trouble": engine.trouble if engine else ""}


def _planned(row: Row, subject: Subject, config: TrainConfig, way: Way) -> int:
    """What the memory plan of a run would say of these steps, without the driver's share."""
    job = Job(config, subject.components.base, subject.family, Card(True), row.resolution, row.resolution, pictures=FIRST)
    training = estimate(job, way).phases["training"]
    return sum(training.values()) - training["driver"]


def _config(row: Row, subject: Subject) -> TrainConfig:
    base = subject.components.base
    values = {"base": base.name, "images": "random", "rank": 16, "alpha": 16, "seed": 1, "batch_size": 1, "resolution": row.resolution}
    chosen = settings.build(
        TrainConfig,
        values
        | {"learning_rate": 1e-4, "steps": 1500, "speed": SPEEDS.get(row.speed, row.speed), "block_offload": row.share}
        | {"fp8_products": row.speed == "fp8"},
    )
    return settings.resolve(chosen, base.habits.get("train", {}), subject.family.facts.defaults["train"])


def _timed(stepper: Stepper, engine: Engine | None, micros: list[Micro], steps: int, rate: float) -> dict[str, Any]:
    device = stepper.components.device
    taker: Any = engine or stepper

    def step(number: int) -> Any:
        loss = taker.accumulate([micros[number % len(micros)]], 1)
        return engine.update(rate).outcome if engine else Known(stepper.update(loss, rate)).outcome

    began = time.perf_counter()
    losses = [step(number)().loss for number in range(len(micros))]
    synchronize(device)
    ready = time.perf_counter() - began
    began = time.perf_counter()
    for number in range(steps):
        step(number)
    synchronize(device)
    seconds = (time.perf_counter() - began) / steps
    found = {"seconds": round(seconds, 4), "ready_seconds": round(ready, 2), "losses": losses}
    if device.type == "cuda":
        stats = torch.cuda.memory_stats(device)
        found |= {f"peak_{kind}_gib": round(stats[f"{kind}_bytes.all.peak"] / GIB, 2) for kind in ("allocated", "reserved")}
    return found


@contextmanager
def _capped(cap: float, device: torch.device) -> Iterator[None]:
    """Within, the allocator takes no more than so many GiB."""
    release(device)
    if device.type != "cuda":
        yield
        return
    torch.cuda.reset_peak_memory_stats(device)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap * GIB / total) if cap else 1.0)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _copied(device: torch.device) -> float:
    """GiB a second from main memory to the device."""
    block = offload.Block(torch.nn.Identity(), [torch.empty(GIB, dtype=torch.uint8)], device)
    there = torch.empty(block.size, dtype=torch.uint8, device=device)
    seconds = []
    for _ in range(3):
        synchronize(device)
        began = time.perf_counter()
        there.copy_(block.home, non_blocking=True)
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    block.unpin()
    return round(block.size / GIB / min(seconds), 1)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m studio.bench.smallcards", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rows", nargs="+", type=Row.of)
    parser.add_argument("--weights", default="random", help="random full-size ones, or demo")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--buffers", type=int, default=SLOTS, help="of the ring that waiting blocks come to")
    chosen = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
        told = {"machine": torch.cuda.get_device_name(device), "torch": torch.__version__, "copied_gib_per_second": _copied(device)}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
    for row in table(chosen.rows, chosen.weights, chosen.steps, device, chosen.buffers):
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
