"""A fingerprint of the frozen base: whether training left it alone.

Every parameter's bits are summed up as integers, weighted by their place in the model; exact, the same on every device, one pass over memory.
"""

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from studio.families.base import Components
from studio.lora.attach.origin import ORIGIN
from studio.lora.attach.weights import NAME

if TYPE_CHECKING:
    from torch import Tensor, device

SLICE = 2**22  # words that are summed up at once: 34 MB
_MODULUS = 2**61 - 1


def fingerprint(c: Components) -> int:
    """Of all numbers of the denoiser and the loaded text encoders that are the base's own."""
    total = 0
    for number, tensor in enumerate(_tensors(c), start=1):
        total = (total * 31 + number * _sum(tensor, c.device)) % _MODULUS
    return total


def _tensors(c: Components) -> "Iterator[Tensor]":
    for part in (c.facts.denoiser, *c.facts.text_encoders):
        model = c.parts.get(part)
        if model is not None:
            for name, tensor in chain(model.named_parameters(), model.named_buffers()):  # a base in fewer bits keeps its weights in buffers
                if {NAME, ORIGIN}.isdisjoint(name.split(".")):
                    yield tensor.detach()


def _sum(tensor: "Tensor", there: "device") -> int:
    """Of its words, slice by slice: each becomes up to four times as large there, and what waits in main memory comes for it."""
    import torch

    if tensor.numel() == 0 or tensor.is_meta:
        return 0
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    slices = tensor.contiguous().view(words).flatten().split(SLICE)
    return int(torch.stack([part.to(there).sum(dtype=torch.int64) for part in slices]).sum())
