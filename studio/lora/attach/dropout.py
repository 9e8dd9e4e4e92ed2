"""Dropout whose masks follow from (seed, batch, item, layer) alone: the same on every device, in any split of a batch, after any resume."""

import torch
from torch import Tensor, nn

_WORD = 0xFFFFFFFF
_ODD = 0x9E3779B1  # 2^32 over the golden ratio, so that neighbouring counters lie far apart


class Chance:
    """The keys of the pictures that are in the model at the moment, shared by all layers; nothing is dropped while `model` evaluates."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.keys: Tensor | None = None  # (B,) int64


class KeyedDropout(nn.Module):
    """Zeroes a share `p` of the entries of (B, ...) in training and scales up the others, by a hash of key, layer and place."""

    def __init__(self, p: float, chance: Chance, layer: int):
        super().__init__()
        self.p, self.chance, self.layer = p, chance, layer

    def forward(self, x: Tensor) -> Tensor:
        if not self.chance.model.training or self.p == 0:
            return x
        keys = self.chance.keys
        if keys is None or x.shape[0] % len(keys):
            raise RuntimeError(f"dropout has keys for {0 if keys is None else len(keys)} pictures and got {x.shape[0]}")
        kept = uniform(keys.repeat_interleave(x.shape[0] // len(keys)), self.layer, x[0].numel()) >= int(self.p * 2**32)
        return x * (kept.view_as(x).to(x.dtype) / (1 - self.p))


def uniform(keys: Tensor, layer: int, n: int) -> Tensor:
    """(B, n) int64, each uniform in [0, 2^32)."""
    seeds = _mixed(keys ^ (keys >> 32) ^ (layer * _ODD & _WORD))
    places = torch.arange(n, device=keys.device, dtype=torch.int64) * _ODD
    return _mixed(places[None] + seeds[:, None])


def _mixed(x: Tensor) -> Tensor:
    """A 32-bit integer hash in int64, whose products may wrap above the low word. Source: skeeto/hash-prospector, lowbias32."""
    x = x & _WORD
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D & _WORD
    x = x ^ (x >> 15)
    x = x * 0x846CA68B & _WORD
    return x ^ (x >> 16)
