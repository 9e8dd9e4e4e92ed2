"""A frozen denoiser made cheap to pass through, for drawing and for training: channels-last pictures, fewer passes over memory.

Everything here computes what the library's modules compute; `Lean.undo` puts those back.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import MethodType
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from studio.families.kernels.gated import gated
from studio.families.kernels.normed import normed


@dataclass
class Lean:
    """What was changed on a denoiser and on torch, to be undone in reverse."""

    _undo: list[Callable[[], object]] = field(default_factory=list)

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()

    def replace(self, module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        """Let a method of one module be this function."""
        module.__dict__[name] = MethodType(function, module)
        self._undo.append(lambda: module.__dict__.pop(name))

    def switch(self, get: Callable[[], bool], put: Callable[[bool], None], value: bool) -> None:
        """Set a switch of torch."""
        before = get()
        put(value)
        self._undo.append(lambda: put(before))


def pays(device: torch.device) -> bool:
    """Whether the passes are kernels of our own there; elsewhere they are plain torch, and gain nothing."""
    return device.type == "cuda" and find_spec("triton") is not None


def convolutions(model: nn.Module, made: Lean) -> None:
    """What a U-Net or a VAE spends beside its products and convolutions, in one pass over memory each."""
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in model.modules():
        if isinstance(module, ResnetBlock2D) and _usual(module):
            made.replace(module, "forward", _residual)
        elif isinstance(module, Transformer2DModel) and module.is_input_continuous and module.use_linear_projection:
            made.replace(module, "_get_output_for_continuous_inputs", _flat_output)
        elif isinstance(module, GEGLU):
            made.replace(module, "forward", _gated)
        elif isinstance(module, nn.GroupNorm):
            made.replace(module, "forward", _normed)


def _usual(block: Any) -> bool:
    """Whether a residual block is the plain one: no change of size inside it, the time added or unknown to it, nothing random."""
    timed = block.time_embedding_norm == "default" and not block.skip_time_act
    plain = not block.up and not block.down and (timed or block.time_emb_proj is None) and type(block.norm1) is type(block.norm2) is nn.GroupNorm
    return plain and block.dropout.p == 0 and isinstance(block.nonlinearity, nn.SiLU)


def _residual(self: Any, input_tensor: Tensor, temb: Tensor | None) -> Tensor:
    """ResnetBlock2D: each norm and what follows it in one go."""
    hidden = self.conv1(_norm(self.norm1, input_tensor, silu=True))
    if temb is not None and self.time_emb_proj is not None:
        hidden = hidden + self.time_emb_proj(nn.functional.silu(temb))[:, :, None, None]
    hidden = self.conv2(_norm(self.norm2, hidden, silu=True))
    shortcut = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
    return shortcut + hidden if self.output_scale_factor == 1 else (shortcut + hidden) / self.output_scale_factor


def _flat_output(self: Any, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int) -> Tensor:
    """Transformer2DModel's way out, its tokens seen as a channels-last picture instead of rearranged."""
    hidden = self.proj_out(hidden_states)
    return hidden.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2) + residual


def _gated(self: Any, hidden_states: Tensor) -> Tensor:
    return gated(self.proj(hidden_states))


def _normed(self: Any, input: Tensor) -> Tensor:
    if input.dim() != 4:
        return nn.functional.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
    return _norm(self, input, silu=False)


def _norm(norm: nn.GroupNorm, x: Tensor, *, silu: bool) -> Tensor:
    return normed(x, norm.weight, norm.bias, norm.num_groups, norm.eps, silu)[0]
