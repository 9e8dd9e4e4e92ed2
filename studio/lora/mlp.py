"""The frozen MLPs of FLUX.1's blocks in 8 bits: product, GELU, product, with one pass over memory between the two, each way.

The single blocks' second product also takes what attention found, which lies before the MLP's own columns.
"""

from types import MethodType
from typing import Any

import torch
from diffusers.models.activations import GELU
from diffusers.models.attention import FeedForward
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock
from torch import Tensor, nn

from studio.families.flux_lean import bounded
from studio.families.kernels.rounded import gelu_backward_rounded, gelu_rounded, rows
from studio.lora.fused import Fused
from studio.lora.scaled import Scaled, multiplied


class _Mlp(torch.autograd.Function):
    """(..., out) = [before, GELU(x W1' + b1)] W2' + b2 in 8 bits; its gradient goes to x and `before` alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, before: Tensor | None, *operands: Any) -> Tensor:
        weight1, turned1, scale1, bias1, weight2, turned2, scale2, bias2 = operands
        inner = multiplied(*rows(x.reshape(-1, x.shape[-1])), weight1, scale1, bias1, None, None, x.dtype)
        ctx.save_for_backward(inner, turned1, scale1, turned2, scale2)
        ahead = None if before is None else before.reshape(-1, before.shape[-1])
        out = multiplied(*gelu_rounded(inner, ahead), weight2, scale2, bias2, None, None, x.dtype)
        return out.view(*x.shape[:-1], weight2.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inner, turned1, scale1, turned2, scale2 = ctx.saved_tensors
        found = multiplied(*rows(grad.reshape(-1, grad.shape[-1])), turned2, scale2, None, None, None, grad.dtype)
        ahead = found.shape[1] - inner.shape[1]
        on_before = found[:, :ahead].view(*grad.shape[:-1], ahead) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, on_before, *([None] * 8)
        on_x = multiplied(*gelu_backward_rounded(found[:, ahead:], inner), turned1, scale1, None, None, None, grad.dtype)
        return on_x.view(*grad.shape[:-1], turned1.shape[0]), on_before, *([None] * 8)


class Mlp:
    """Two layers in 8 bits, without a LoRA, and what is between them."""

    def __init__(self, first: Scaled, second: Scaled):
        self.operands = (*first.operands, *second.operands)

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """x: (..., in). before: (..., j), what the second product takes in front of the GELU, or None."""
        return _Mlp.apply(x, before, *self.operands)  # type: ignore[return-value]


def join(denoiser: nn.Module, made: Fused) -> int:
    """Let the MLPs whose layers `scaled.reduce` left in 8 bits without a LoRA pass through as one, how many; `made.undo` ends it."""
    n = 0
    for module in denoiser.modules():
        ends = _ends(module)
        first, second = (_frozen(end) for end in ends) if ends else (None, None)
        if first is None or second is None:
            continue
        mlp = Mlp(first, second)
        if isinstance(module, FeedForward):
            made.stand_in(module, mlp.forward)
        else:
            _join_tail(module, mlp, made)
        n += 1
    return n


def _ends(module: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """The two layers of an MLP with nothing but a GELU by tanh between them."""
    if isinstance(module, FluxSingleTransformerBlock):
        act = module.act_mlp
        return (module.proj_mlp, module.proj_out) if isinstance(act, nn.GELU) and act.approximate == "tanh" else None
    if not isinstance(module, FeedForward) or len(module.net) != 3:
        return None
    act, dropout, last = module.net.children()
    if not isinstance(act, GELU) or act.approximate != "tanh" or not isinstance(dropout, nn.Dropout) or dropout.p > 0:
        return None
    return act.proj, last


def _frozen(layer: nn.Module) -> Scaled | None:
    own = getattr(layer.__dict__.get("forward"), "__self__", None)
    return own if isinstance(own, Scaled) and own.lora is None else None


def _join_tail(block: Any, mlp: Mlp, made: Fused) -> None:
    block.mlp = mlp
    made.after(lambda: delattr(block, "mlp"))
    made.stand_in(block, MethodType(_single_block, block))


def _single_block(
    self: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    joint_attention_kwargs: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """FluxSingleTransformerBlock: MLP and the product behind it and attention in one go."""
    text = encoder_hidden_states.shape[1]
    hidden = torch.cat([encoder_hidden_states, hidden_states], dim=1)
    normed, gate = self.norm(hidden, emb=temb)
    attended = self.attn(hidden_states=normed, image_rotary_emb=image_rotary_emb, **(joint_attention_kwargs or {}))
    hidden = bounded(hidden + gate.unsqueeze(1) * self.mlp.forward(normed, attended))
    return hidden[:, :text], hidden[:, text:]
