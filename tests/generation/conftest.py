"""The demo bases with all parts, loaded once, and adapters of random numbers for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from studio.families import sources
from studio.families.base import Components
from studio.generation import together
from studio.generation.sampler import open_base
from studio.lora.adapter import Adapter, LowRank
from studio.lora.attach import module_map

BASES = ("demo-sdxl", "demo-flux")


@dataclass
class Asked:
    """Requests that appear at the given look, counted from 1."""

    wish: str = ""
    at: int = 0
    looks: int = field(default=0)

    def pending(self) -> set[str]:
        self.looks += 1
        return {self.wish} if self.wish and self.looks >= self.at else set()


@pytest.fixture(scope="session")
def loaded() -> Callable[[str], Components]:
    kept: dict[str, Components] = {}

    def load(name: str) -> Components:
        if name not in kept:
            kept[name] = open_base(sources.find(name), "fp32", "cpu")
        return kept[name]

    return load


@pytest.fixture(params=BASES)
def c(request: pytest.FixtureRequest, loaded: Callable[[str], Components]) -> Components:
    return loaded(request.param)


def adapter(c: Components, seed: int, contains: Sequence[str] = (".attn",), *, rank: int = 4, size: float = 0.3, every: int = 1) -> Adapter:
    """Random low-rank layers on modules whose path contains one of the words."""
    draw = torch.Generator().manual_seed(seed)
    shapes: dict[str, Any] = {path: module.weight.shape for path, module in module_map(c).items()}
    paths = [path for path, shape in shapes.items() if any(word in path for word in contains) and len(shape) in (2, 4)]
    layers = {}
    for path in paths[::every]:
        shape = shapes[path]
        down = torch.randn(rank, *shape[1:], generator=draw) / shape[1:].numel() ** 0.5
        layers[path] = LowRank(down, torch.randn(shape[0], rank, *([1] * (len(shape) - 2)), generator=draw) * size / rank**0.5, alpha=rank / 2)
    return Adapter(c.facts.name, layers, {"ss_output_name": f"random-{seed}", "sshs_model_hash": f"{seed:012x}" + "ab" * 26})


def room_for(n: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Memory runs out when more than n pictures are denoised at once; how many were tried each time, as it fills."""
    plain, sizes = together.denoise, []

    def tight(c, guide, schedule, noise, **rest):
        sizes.append(len(noise))
        if len(noise) > n:
            raise torch.OutOfMemoryError("out of memory")
        return plain(c, guide, schedule, noise, **rest)

    monkeypatch.setattr(together, "denoise", tight)
    return sizes
