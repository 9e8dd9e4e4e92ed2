"""Where the frozen base of a run lies: on the device, in the number format that the settings ask for, with blocks that wait in main memory."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from studio.config import TrainConfig
from studio.data.cache import Cache
from studio.families import offload, quantised
from studio.families.base import Components, Family, Part
from studio.lora.attach import NAME
from studio.lora.fused import Product

CPU = torch.device("cpu")


@dataclass
class Placed:
    """A loaded base. parameters: of the denoiser. waiting: names of its blocks that wait in main memory."""

    components: Components
    parameters: int
    waiting: list[str] = field(default_factory=list)
    ring: offload.Ring | None = None

    def settle(self) -> None:
        """Put what was added to waiting blocks on the device."""
        if self.waiting:
            offload.settle(self.components.denoiser, self.waiting, self.components.device, _trained)

    def wait(self, buffers: int) -> None:
        """Let the waiting blocks come to so many buffers when they are needed; nothing is added to them any more."""
        if self.waiting:
            self.ring = offload.wait(self.components.denoiser, self.waiting, self.components.device, _trained, _joined, buffers)

    def close(self) -> None:
        if self.ring:
            self.ring.close()
            self.ring = None


def reduced(config: TrainConfig) -> bool:
    """Whether the base is kept in fewer bits."""
    return config.base_format not in ("auto", "full")


def load(family: Family, store: Cache, config: TrainConfig) -> Placed:
    """The denoiser, and the encoders that a step reads. What is rounded or waits comes by way of the CPU, so that the device never holds it in full."""
    spoken: list[Part] = ["text"] if config.word_t5 else ["clip"] if config.reads_live else []
    parts: list[Part] = ["denoiser", *spoken]
    share = config.block_offload or 0.0
    c = family.load(store.base, parts, store.dtype, CPU if share or reduced(config) else store.device)
    c.device = store.device
    parameters = sum(parameter.numel() for parameter in c.denoiser.parameters())
    if reduced(config):
        quantised.quantise(c.denoiser, config.base_format, store.device, CPU if share else None)
    placed = Placed(c, parameters, offload.names(c.denoiser, share))
    if share:
        offload.settle(c.denoiser, placed.waiting, store.device)
    for name in c.facts.text_encoders:
        if name in c.parts:
            c.parts[name].to(store.device)
    return placed


def _trained(name: str) -> bool:
    return NAME in name.split(".")


def _joined(module: nn.Module) -> Iterable[Tensor]:
    """The weights of several layers as one, which fused products read."""
    return [tensor for tensor in module.operands[:2] if tensor is not None] if isinstance(module, Product) else ()
