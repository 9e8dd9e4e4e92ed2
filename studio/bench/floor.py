"""The floor: how fast this card could do the arithmetic and the memory traffic that a row cannot do without."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from studio.bench.cases import Case
from studio.bench.subjects import Subject, skeleton
from studio.training.step import Micro

SIDE = {"cuda": 8192, "cpu": 1024}  # of the square matrices whose product is timed
COPIED = {"cuda": 2**31, "cpu": 2**27}  # bytes


@dataclass(frozen=True)
class Card:
    """What this device reaches. flops: of a matrix product in one precision, per second. bandwidth: bytes read and written per second."""

    flops: dict[str, float]
    bandwidth: float


def card(device: torch.device, precisions: tuple[str, ...]) -> Card:
    """Measure the two ceilings on random data."""
    kind = device.type if device.type in SIDE else "cpu"
    side = SIDE[kind]
    flops = {}
    for precision in precisions:
        a, b = (torch.randn(side, side, device=device).to(number_format(precision)) for _ in range(2))
        flops[precision] = 2 * side**3 / _seconds(lambda a=a, b=b: a @ b, device)
    source = torch.empty(COPIED[kind] // 2, dtype=torch.float16, device=device).normal_()
    target = torch.empty_like(source)
    return Card(flops, 2 * source.nbytes / _seconds(lambda: target.copy_(source), device))


def number_format(precision: str) -> torch.dtype:
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def forward_flops(subject: Subject, resolution: int) -> float:
    """Operations of one forward pass for one picture, counted without running it."""
    from torch.utils.flop_counter import FlopCounterMode

    c, micro = subject.components, subject.micro(resolution, 1, 0)
    bare = replace(c, parts={**c.parts, c.facts.denoiser: skeleton(subject.family, subject.configs)}, dtype=torch.float32, device=torch.device("meta"))
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        _predict(subject, bare, micro)
    return float(counted.get_total_flops())


def _predict(subject: Subject, bare: "torch.nn.Module | object", micro: Micro) -> None:
    meta = {name: tensor.to("meta") for name, tensor in micro.batch.conditioning.items()}
    subject.family.predict(bare, micro.noise.to("meta"), micro.level.to("meta"), meta, micro.batch.sizes.to("meta"))  # type: ignore[arg-type]


def floor(case: Case, subject: Subject, found: Card, flops: float) -> float:
    """Seconds below which no step can go: the arithmetic, or reading the frozen weights once in each direction, whichever is longer.

    A LoRA step needs the forward pass and the backward pass to the activations, as much again; the base's own gradients it does not need.
    """
    passes = 2 if case.task == "train" else 1
    weights = sum(p.nbytes for p in subject.components.denoiser.parameters() if not p.requires_grad)
    return max(passes * flops * case.batch / found.flops[case.precision], passes * weights / found.bandwidth)


def _seconds(act: Callable[[], object], device: torch.device) -> float:
    """Median seconds of an act, after warming up."""
    spent = []
    for _ in range(12):
        synchronize(device)
        began = time.perf_counter()
        act()
        synchronize(device)
        spent.append(time.perf_counter() - began)
    return statistics.median(spent[3:])


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
