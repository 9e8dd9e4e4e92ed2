# pyright: reportMissingImports=false, reportPossiblyUnboundVariable=false, reportIndexIssue=false, reportReturnType=false
"""GEGLU: one half of a product times the GELU of the other, forward and backward in one pass each."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

if find_spec("triton"):
    import triton
    import triton.language as tl

    @triton.jit
    def _forward(joined, out, width, n, BLOCK: tl.constexpr):
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < n
        place = (at // width) * 2 * width + at % width
        value = tl.load(joined + place, inside, 0.0).to(tl.float32)
        gate = tl.load(joined + place + width, inside, 0.0).to(tl.float32)
        share = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
        tl.store(out + at, (value * gate * share).to(out.dtype.element_ty), inside)

    @triton.jit
    def _backward(joined, grad, found, width, n, BLOCK: tl.constexpr):
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < n
        place = (at // width) * 2 * width + at % width
        value = tl.load(joined + place, inside, 0.0).to(tl.float32)
        gate = tl.load(joined + place + width, inside, 0.0).to(tl.float32)
        back = tl.load(grad + at, inside, 0.0).to(tl.float32)
        share = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
        slope = share + gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
        tl.store(found + place, (back * gate * share).to(found.dtype.element_ty), inside)
        tl.store(found + place + width, (back * value * slope).to(found.dtype.element_ty), inside)


BLOCK = 1024


@torch.library.custom_op("lora_studio::gated", mutates_args=())
def gated(joined: Tensor) -> Tensor:
    """(..., d) from (..., 2 d): the first half times the GELU of the second."""
    if not joined.is_cuda:
        value, gate = joined.chunk(2, dim=-1)
        return value * torch.nn.functional.gelu(gate)
    joined = joined.contiguous()
    width = joined.shape[-1] // 2
    out = joined.new_empty((*joined.shape[:-1], width))
    _forward[(triton.cdiv(out.numel(), BLOCK),)](joined, out, width, out.numel(), BLOCK=BLOCK)
    return out


@gated.register_fake
def _(joined: Tensor) -> Tensor:
    return joined.new_empty((*joined.shape[:-1], joined.shape[-1] // 2))


@torch.library.custom_op("lora_studio::gated_backward", mutates_args=())
def gated_backward(grad: Tensor, joined: Tensor) -> Tensor:
    """Gradient of `gated` on its input."""
    if not joined.is_cuda:
        value, gate = joined.chunk(2, dim=-1)
        return torch.cat([grad * torch.nn.functional.gelu(gate), torch.ops.aten.gelu_backward(grad * value, gate)], dim=-1)
    grad, joined = grad.contiguous(), joined.contiguous()
    found = torch.empty_like(joined)
    _backward[(triton.cdiv(grad.numel(), BLOCK),)](joined, grad, found, grad.shape[-1], grad.numel(), BLOCK=BLOCK)
    return found


@gated_backward.register_fake
def _(grad: Tensor, joined: Tensor) -> Tensor:
    return torch.empty_like(joined)


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _back(ctx: Any, grad: Tensor) -> Tensor:
    return gated_backward(grad, ctx.saved_tensors[0])


gated.register_autograd(_back, setup_context=_keep)
