# pyright: reportMissingImports=false, reportPossiblyUnboundVariable=false, reportIndexIssue=false, reportReturnType=false
"""What a transformer block does between its products, told by a vector a picture, in one pass over memory each. Forward only.

All sums are in fp32 and rounded once, where the library rounds after every operation. Vectors are (B, D) and may be parts of a longer one.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

if find_spec("triton"):
    import triton
    import triton.language as tl

    @triton.jit
    def _steps(x, product, gate, scale, shift, summed, out, tokens, width, apart, step, eps, ADDS: tl.constexpr, NORMS: tl.constexpr, BLOCK: tl.constexpr):
        """One token. apart: numbers between pictures of x. step: numbers between vectors."""
        row = tl.program_id(0).to(tl.int64)
        picture = row // tokens
        column = tl.arange(0, BLOCK)
        inside = column < width
        value = tl.load(x + picture * apart + (row % tokens) * width + column, inside, 0.0).to(tl.float32)
        if ADDS:
            value += tl.load(gate + picture * step + column, inside, 0.0).to(tl.float32) * tl.load(product + row * width + column, inside, 0.0).to(tl.float32)
            tl.store(summed + row * width + column, value.to(summed.dtype.element_ty), inside)
        if NORMS:
            centred = tl.where(inside, value - tl.sum(value, 0) / width, 0.0)
            level = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)
            factor = tl.load(scale + picture * step + column, inside, 0.0).to(tl.float32)
            offset = tl.load(shift + picture * step + column, inside, 0.0).to(tl.float32)
            tl.store(out + row * width + column, (centred * level * (1.0 + factor) + offset).to(out.dtype.element_ty), inside)

    @triton.jit
    def _join(first, second, out, narrow, wide, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        kept, made = column < narrow, (column >= narrow) & (column < narrow + wide)
        x = tl.load(second + row * wide + column - narrow, made, 0.0).to(tl.float32)
        gelu = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        found = tl.where(kept, tl.load(first + row * narrow + column, kept, 0.0).to(tl.float32), gelu)
        tl.store(out + row * (narrow + wide) + column, found.to(out.dtype.element_ty), kept | made)


JOINED = 2048  # columns of one program


def modulated(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """LayerNorm of x (B, tokens, D) times 1 + scale, plus shift."""
    if not x.is_cuda:
        return _norm(x.float(), scale, shift, eps).to(x.dtype)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _run(x, None, (scale, scale, shift), None, out, eps)
    return out


def added(x: Tensor, gate: Tensor, product: Tensor) -> Tensor:
    """x + gate * product, all (B, tokens, D) but gate."""
    if not x.is_cuda:
        return (x.float() + gate.float()[:, None] * product.float()).to(x.dtype)
    summed = torch.empty_like(x, memory_format=torch.contiguous_format)
    _run(x, product, (gate, gate, gate), summed, None, 0.0)
    return summed


def added_and_modulated(x: Tensor, gate: Tensor, product: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + gate * product, and `modulated` of it."""
    if not x.is_cuda:
        summed = x.float() + gate.float()[:, None] * product.float()
        return summed.to(x.dtype), _norm(summed, scale, shift, eps).to(x.dtype)
    summed, out = (torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2))
    _run(x, product, (gate, scale, shift), summed, out, eps)
    return summed, out


def joined(first: Tensor, second: Tensor) -> Tensor:
    """(B, tokens, a + b): first (B, tokens, a) as it is, then GELU (by tanh) of second (B, tokens, b)."""
    if not first.is_cuda:
        return torch.cat([first, torch.nn.functional.gelu(second, approximate="tanh")], dim=-1)
    first, second = first.contiguous(), second.contiguous()
    narrow, wide = first.shape[-1], second.shape[-1]
    out = first.new_empty((*first.shape[:-1], narrow + wide))
    grid = (out.numel() // (narrow + wide), triton.cdiv(narrow + wide, JOINED))
    _join[grid](first, second, out, narrow, wide, BLOCK=JOINED, num_warps=8)
    return out


def _norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    normal = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=eps)
    return normal * (1 + scale.float()[:, None]) + shift.float()[:, None]


def _run(x: Tensor, product: Tensor | None, vectors: tuple[Tensor, Tensor, Tensor], summed: Tensor | None, out: Tensor | None, eps: float) -> None:
    gate, scale, shift = vectors
    assert gate.stride() == scale.stride() == shift.stride() and gate.stride(1) == 1, "vectors are parts of one"
    b, tokens, width = x.shape
    x = x if x.stride()[1:] == (width, 1) else x.contiguous()
    product = x if product is None else product.contiguous()
    target = summed if summed is not None else out
    flags = {"ADDS": summed is not None, "NORMS": out is not None, "BLOCK": triton.next_power_of_2(width)}
    summed, out = (target if place is None else place for place in (summed, out))
    _steps[(b * tokens,)](x, product, gate, scale, shift, summed, out, tokens, width, x.stride(0), gate.stride(0), eps, **flags, num_warps=8)
