"""Format and family of a LoRA in one word each, from the names and shapes of its tensors. Pure; identity.py tells more."""

from collections.abc import Mapping
from dataclasses import dataclass

from studio.lora.formats.identity import Identity, identify

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Detection:
    """format: kohya, peft, dotted (diffusion_model.), onetrainer, lycoris, xlabs, ..., checkpoint (a run's own) or unknown.

    family is empty if it is unknown or could be several.
    """

    format: str
    family: str
    confidence: float  # share of the tensors that have a place in that family
    reason: str
    modules: int = 0
    unknown: tuple[str, ...] = ()


def detect(shapes: Shapes) -> Detection:
    """Format and family of a LoRA, and in one sentence why."""
    return summary(identify(shapes))


def summary(found: Identity) -> Detection:
    """The same of a file that was identified before."""
    if found.kind != "lora" or not found.format:
        return Detection("unknown", "", 0.0, found.reasons[0], 0, found.unknown)
    return Detection(found.format, found.family, found.confidence, found.reasons[0], sum(found.parts.values()), found.unknown)
