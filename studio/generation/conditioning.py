"""Encoded prompts of a loaded base, kept so that the next picture of the same words starts at once."""

from collections import OrderedDict
from typing import TYPE_CHECKING

from studio import families
from studio.families.base import Components, Conditioning

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 32  # prompts; 4 MB each at the size of T5 XXL
_WARM = "prompts"


def encode(c: Components, prompt: str, text_stack: str) -> Conditioning:
    """Conditioning of one prompt. text_stack: fingerprint of what is baked into the text encoders."""
    kept: OrderedDict[tuple[str, str], Conditioning] = c.warm.setdefault(_WARM, OrderedDict())
    key = (prompt, text_stack)
    if key not in kept:
        kept[key] = families.get(c.facts.name).encode_captions(c, [prompt])
    kept.move_to_end(key)
    while len(kept) > KEPT:
        kept.popitem(last=False)
    return kept[key]


def arguments(c: Components, prompt: str, negative: str, guidance: float, text_stack: str) -> "dict[str, Tensor]":
    """What the family's pipeline is given instead of words."""
    import torch

    found = dict(encode(c, prompt, text_stack))
    if not c.facts.negative_prompts or guidance <= 1:
        return found
    if not negative and c.parts.get("force_zeros_for_empty_prompt", False):
        other = {key: torch.zeros_like(value) for key, value in found.items()}
    else:
        other = encode(c, negative, text_stack)
    return found | {f"negative_{key}": value for key, value in other.items()}
