"""How many numbers an adapter trains, and what the optimizer keeps of each, by the shapes of the layers that it goes on."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from studio.config import TrainConfig
from studio.config.values import numbered
from studio.families.anatomy import Anatomy, Layer
from studio.families.base import Facts

SHARED = re.compile(r"\.(to|add)_[qkv](_proj)?$")  # layers that become one product in recorded steps where they read the same


@dataclass(frozen=True)
class Trained:
    """A layer of the base with its own rank."""

    layer: Layer
    rank: int

    def parameters(self, network: str) -> int:
        return sum(math.prod(shape) for shape in self.shapes(network))

    def shapes(self, network: str) -> list[tuple[int, ...]]:
        """Of the trained tensors, as PEFT makes them."""
        inputs, outputs, rank = self.layer.inputs, self.layer.outputs, self.rank
        if network == "loha":
            return [(rank, outputs), (inputs, rank)] * 2
        if network == "lokr":
            return _kronecker(self.layer, rank)
        if network == "adalora":
            return [(rank, inputs), (outputs, rank), (rank, 1)]
        return [(rank, inputs), (outputs, rank), *([(outputs,)] if network == "dora" else [])]


def trained(net: Anatomy, facts: Facts, config: TrainConfig) -> dict[str, Trained]:
    """The layers of the denoiser that get an adapter, by name."""
    rows = [(re.compile(pattern), int(rank)) for pattern, rank in numbered(config.block_ranks).items()]
    found = {}
    for layer in net.layers():
        path = f"{facts.denoiser}.{layer.name}"
        if len(layer.shape) > 1 and _wanted(layer.name, path, facts, config):
            found[layer.name] = Trained(layer, next((rank for pattern, rank in rows if pattern.search(path)), config.rank or 0))
    return found


def _wanted(name: str, path: str, facts: Facts, config: TrainConfig) -> bool:
    if config.network == "none":
        return False
    if config.target_pattern:
        return bool(re.search(config.target_pattern, path))
    return any(re.fullmatch(pattern, name) for pattern in facts.lora_targets.get(config.targets, ()))


def state_bytes(optimizer: str, shapes: Sequence[tuple[int, ...]]) -> int:
    """Of an optimizer's memory for tensors of these shapes; all of it is fp32 but for what `adamw8bit` keeps of tensors from 4096 numbers on."""
    return sum(_state(optimizer, shape) for shape in shapes)


def _state(optimizer: str, shape: tuple[int, ...]) -> int:
    n = math.prod(shape)
    factored = 4 * (n // shape[-1] + n // shape[-2]) if len(shape) > 1 else 4 * n
    if optimizer == "adamw8bit":
        return 2 * n + 8 * -(-n // 256) if n >= 4096 else 8 * n
    known: Mapping[str, int] = {"adamw": 8 * n, "lion": 4 * n, "prodigy": 16 * n, "schedule-free": 8 * n, "adafactor": factored}
    return known[optimizer] if optimizer in known else 4 * n + (2 * factored if len(shape) > 1 else factored)


def live_numbers(layers: Mapping[str, Trained]) -> int:
    """Numbers of the rounded weights in recorded steps: up matrices of layers that became one product stand on its diagonal."""
    groups: dict[tuple[str, str, tuple[int, ...]], list[Trained]] = {}
    for name, one in layers.items():
        owner = name.rpartition(".")[0] if SHARED.search(name) else name
        groups.setdefault((owner, one.layer.reads, one.layer.shape), []).append(one)
    return sum(one.rank * one.layer.inputs + len(members) * one.rank * one.layer.outputs for members in groups.values() for one in members)


def per_layer(net: Anatomy, layers: Mapping[str, Trained]) -> Iterator[tuple[int, list[Trained]]]:
    """Number of each unit with the trained layers in it."""
    for number, unit in enumerate(net.units):
        yield number, [layers[layer.name] for layer in unit.layers if layer.name in layers]


def _kronecker(layer: Layer, rank: int) -> list[tuple[int, ...]]:
    """As PEFT splits both sides, the first factor whole, the second in two where that is smaller."""
    kernel = math.prod(layer.shape[2:])
    first_in, second_in = _factors(layer.shape[1])
    first_out, second_out = _factors(layer.shape[0])
    if rank < max(second_out, second_in) / 2:
        return [(first_out, first_in), (second_out, rank), (rank, second_in * kernel)]
    return [(first_out, first_in), (second_out, second_in * kernel)]


def _factors(n: int) -> tuple[int, int]:
    """The two factors of n that are nearest to each other, the smaller one first."""
    small = next(m for m in range(math.isqrt(n), 0, -1) if n % m == 0)
    return small, n // small
