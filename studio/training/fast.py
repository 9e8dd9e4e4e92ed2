"""A base with its adapter, made ready for the way in which a run takes its steps, and given back as it was."""

from dataclasses import dataclass

import torch

from studio.errors import SettingsError
from studio.families.lean import Lean
from studio.lora import mlp, scaled
from studio.lora.attach import NAME, Attached
from studio.lora.fused import Fused, fuse
from studio.training.lean import lean
from studio.training.speed import Speed


@dataclass
class Fast:
    """Fused adapter and lean base."""

    fused: Fused
    lean: Lean

    def undo(self) -> None:
        self.lean.undo()
        self.fused.undo()


def prepare(attached: Attached, speed: Speed, *, fp8: bool = False) -> Fast | None:
    """Change what the way of taking steps asks for; None if it asks for nothing. fp8: products of the frozen base in 8 bits.

    Raises SettingsError if the device cannot multiply in 8 bits.
    """
    if fp8:
        _check_fp8(attached, speed)
    if speed.mode == "eager":
        return None
    c = attached.components
    fused = fuse(c.denoiser, NAME)
    if fp8:
        scaled.reduce(c.denoiser, fused)
        mlp.join(c.denoiser, fused)
    return Fast(fused, lean(c.denoiser, c.device, compiled=speed.mode == "compile"))


def _check_fp8(attached: Attached, speed: Speed) -> None:
    device = attached.components.device
    if speed.mode == "eager":
        raise SettingsError(f"fp8_products needs speed graph or compile, and steps are taken eagerly here ({speed.why}); leave it off")
    if torch.cuda.get_device_capability(device) < scaled.CAPABLE:
        raise SettingsError(f"fp8_products: {torch.cuda.get_device_name(device)} does not multiply in 8 bits; leave it off")
