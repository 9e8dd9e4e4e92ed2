# pyright: reportMissingImports=false, reportPossiblyUnboundVariable=false, reportIndexIssue=false, reportReturnType=false
"""Queries and keys of FLUX.1's attention: RMSNorm of every head, then its rotary positions, in one pass over memory each way.

A part is the joined product (B, tokens, 3 heads d) of queries, keys and values of one stream; where there are two, text comes first. The
norms' own weights are frozen. The way back writes the gradient of the joined product whole, values included.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

if find_spec("triton"):
    import triton
    import triton.language as tl

    @triton.jit
    def _halves(x, HEADS: tl.constexpr, HALF: tl.constexpr):
        return tl.split(tl.reshape(x, (HEADS, HALF, 2)))

    @triton.jit
    def _whole(even, odd, HEADS: tl.constexpr, HALF: tl.constexpr):
        return tl.reshape(tl.join(even, odd), (HEADS, 2 * HALF))

    @triton.jit
    def _turn(x, out, weight, cos, sin, inside, eps, HEADS: tl.constexpr, HALF: tl.constexpr):
        value = tl.load(x, inside, 0.0).to(tl.float32)
        level = 1.0 / tl.sqrt(tl.sum(value * value, 1) / (2 * HALF) + eps)
        even, odd = _halves(value * level[:, None] * weight, HEADS, HALF)
        cos_even, cos_odd = _halves(cos, 1, HALF)
        sin_even, sin_odd = _halves(sin, 1, HALF)
        found = _whole(even * cos_even - odd * sin_even, odd * cos_odd + even * sin_odd, HEADS, HALF)
        tl.store(out, found.to(out.dtype.element_ty), inside)

    @triton.jit
    def _turn_back(x, grad, out, weight, cos, sin, inside, eps, HEADS: tl.constexpr, HALF: tl.constexpr):
        value = tl.load(x, inside, 0.0).to(tl.float32)
        level = 1.0 / tl.sqrt(tl.sum(value * value, 1) / (2 * HALF) + eps)[:, None]
        even, odd = _halves(tl.load(grad, inside, 0.0).to(tl.float32), HEADS, HALF)
        cos_even, cos_odd = _halves(cos, 1, HALF)
        sin_even, sin_odd = _halves(sin, 1, HALF)
        back = _whole(even * cos_even + odd * sin_odd, odd * cos_odd - even * sin_even, HEADS, HALF) * weight
        share = tl.sum(back * value, 1)[:, None] / (2 * HALF)
        tl.store(out, (level * (back - value * level * level * share)).to(out.dtype.element_ty), inside)

    @triton.jit
    def _forward(of_query, of_key, for_query, for_key, cos, sin, query, key, tokens, total, first, heads, step, eps, HEADS: tl.constexpr, HALF: tl.constexpr):
        """One token, some heads. tokens: of this part. total: of all parts. first: the place of this part's first one. step: numbers between tokens."""
        row, head = tl.program_id(0), tl.program_id(1) * HEADS + tl.arange(0, HEADS)
        token = first + row % tokens
        there = ((row // tokens).to(tl.int64) * total + token) * heads * (2 * HALF)
        here = row.to(tl.int64) * step
        column = tl.arange(0, 2 * HALF)
        inside = (head < heads)[:, None] & (column >= 0)[None, :]
        place = head[:, None] * (2 * HALF) + column[None, :]
        c, s = (tl.load(cos + token * (2 * HALF) + column)[None, :], tl.load(sin + token * (2 * HALF) + column)[None, :])
        weight = tl.load(for_query + column).to(tl.float32)[None, :]
        _turn(of_query + here + place, query + there + place, weight, c, s, inside, eps, HEADS, HALF)
        weight = tl.load(for_key + column).to(tl.float32)[None, :]
        _turn(of_key + here + place, key + there + place, weight, c, s, inside, eps, HEADS, HALF)

    @triton.jit
    def _backward(joined, for_query, for_key, cos, sin, query, key, value, out, tokens, total, first, heads, eps, HEADS: tl.constexpr, HALF: tl.constexpr):
        """The same, from the gradients on query, key and value to that on the joined product."""
        row, head = tl.program_id(0), tl.program_id(1) * HEADS + tl.arange(0, HEADS)
        token = first + row % tokens
        width = heads * (2 * HALF)
        there = ((row // tokens).to(tl.int64) * total + token) * width
        here = row.to(tl.int64) * 3 * width
        column = tl.arange(0, 2 * HALF)
        inside = (head < heads)[:, None] & (column >= 0)[None, :]
        place = head[:, None] * (2 * HALF) + column[None, :]
        c, s = (tl.load(cos + token * (2 * HALF) + column)[None, :], tl.load(sin + token * (2 * HALF) + column)[None, :])
        weight = tl.load(for_query + column).to(tl.float32)[None, :]
        _turn_back(joined + here + place, query + there + place, out + here + place, weight, c, s, inside, eps, HEADS, HALF)
        weight = tl.load(for_key + column).to(tl.float32)[None, :]
        _turn_back(joined + here + width + place, key + there + place, out + here + width + place, weight, c, s, inside, eps, HEADS, HALF)
        tl.store(out + here + 2 * width + place, tl.load(value + there + place, inside, 0.0), inside)


HEADS, WARPS = 8, 4  # of one program


def turned(joined: Tensor, text: Tensor | None, norms: Sequence[Tensor], rotary: Sequence[Tensor], heads: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, (B, tokens, heads, d), as attention takes them.

    joined: (B, image tokens, 3 heads d). text: likewise, or None. norms: (d,) for query and key, then for those of the text. rotary:
    cos and sin (tokens, d), fp32, of text and image.
    """
    return _Turned.apply(joined, text, *norms, *([None] * (4 - len(norms))), *rotary, heads, eps)  # type: ignore[return-value]


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, joined: Tensor, text: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        *norms, cos, sin, heads, eps = rest
        parts = [joined] if text is None else [text, joined]
        ordered = norms[:2] if text is None else [*norms[2:], *norms[:2]]
        ctx.save_for_backward(joined, text, *norms, cos, sin)
        ctx.heads, ctx.eps = heads, eps
        query, key = turn(parts, ordered, [cos, sin], heads, eps)
        values = [part[..., part.shape[-1] // 3 * 2 :] for part in parts]
        return query, key, (values[0] if text is None else torch.cat(values, 1)).unflatten(-1, (heads, -1))

    @staticmethod
    def backward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        joined, text, *norms, cos, sin = ctx.saved_tensors
        parts = [joined] if text is None else [text, joined]
        ordered = norms[:2] if text is None else [*norms[2:], *norms[:2]]
        found = turn_back(query, key, value, parts, ordered, [cos, sin], ctx.heads, ctx.eps)
        return found[-1], None if text is None else found[0], *([None] * 8)


@torch.library.custom_op("lora_studio::turn", mutates_args=())
def turn(parts: list[Tensor], norms: list[Tensor], rotary: list[Tensor], heads: int, eps: float) -> tuple[Tensor, Tensor]:
    """Query and key (B, tokens, heads, d) of parts in their order, each with two norms."""
    each = [part.contiguous().chunk(3, -1)[:2] for part in parts]
    return turned_apart(each, [norms[2 * n : 2 * n + 2] for n in range(len(parts))], rotary, heads, eps)


def turned_apart(
    parts: Sequence[Sequence[Tensor]], norms: Sequence[Sequence[Tensor]], rotary: Sequence[Tensor], heads: int, eps: float
) -> tuple[Tensor, Tensor]:
    """The same of queries and keys that are products of their own, (B, tokens, heads d) each, without a way back. norms: two for each part."""
    model = parts[0][0]
    shape = model.shape[0], sum(query.shape[1] for query, _ in parts), heads, model.shape[-1] // heads
    query, key = model.new_empty(shape), model.new_empty(shape)
    first = 0
    for (of_query, of_key), own in zip(parts, norms, strict=True):
        tokens = of_query.shape[1]
        if model.is_cuda:
            sizes = {"HEADS": HEADS, "HALF": shape[-1] // 2, "num_warps": WARPS}
            grid = (shape[0] * tokens, triton.cdiv(heads, HEADS))
            _forward[grid](of_query, of_key, *own, *rotary, query, key, tokens, shape[1], first, heads, of_query.stride(1), eps, **sizes)
        else:
            span = slice(first, first + tokens)
            for out, weight, product in zip((query, key), own, (of_query, of_key), strict=True):
                even, odd = (_level(product.unflatten(-1, (heads, -1)), eps)[0] * weight.float()).unflatten(-1, (-1, 2)).unbind(-1)
                (c_even, c_odd), (s_even, s_odd) = (_pairs(table[span]) for table in rotary)
                out[:, span] = torch.stack([even * c_even - odd * s_even, odd * c_odd + even * s_odd], -1).flatten(-2)
        first += tokens
    return query, key


@turn.register_fake
def _(parts: list[Tensor], norms: list[Tensor], rotary: list[Tensor], heads: int, eps: float) -> tuple[Tensor, Tensor]:
    return parts[0].new_empty(_shape(parts, heads)), parts[0].new_empty(_shape(parts, heads))


@torch.library.custom_op("lora_studio::turn_back", mutates_args=())
def turn_back(
    query: Tensor, key: Tensor, value: Tensor, parts: list[Tensor], norms: list[Tensor], rotary: list[Tensor], heads: int, eps: float
) -> list[Tensor]:
    """Gradients on the parts from those on query, key and value (B, tokens, heads, d)."""
    found = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in parts]
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    first, total = 0, query.shape[1]
    for number, (part, out) in enumerate(zip(parts, found, strict=True)):
        tokens, own = part.shape[1], norms[2 * number : 2 * number + 2]
        if part.is_cuda:
            sizes = {"HEADS": HEADS, "HALF": query.shape[-1] // 2, "num_warps": WARPS}
            grid = (part.shape[0] * tokens, triton.cdiv(heads, HEADS))
            _backward[grid](part.contiguous(), *own, *rotary, query, key, value, out, tokens, total, first, heads, eps, **sizes)
        else:
            span = slice(first, first + tokens)
            tables = [_pairs(table[span]) for table in rotary]
            pieces = [_plain_back(grad[:, span], x, weight, tables, eps) for grad, x, weight in zip((query, key), part.chunk(3, -1), own, strict=False)]
            out.copy_(torch.cat([*pieces, value[:, span].flatten(2)], -1))
        first += tokens
    return found


@turn_back.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, parts: list[Tensor], norms: list[Tensor], rotary: list[Tensor], heads: int, eps: float) -> list[Tensor]:
    return [torch.empty_like(part, memory_format=torch.contiguous_format) for part in parts]


def _shape(parts: Sequence[Tensor], heads: int) -> tuple[int, int, int, int]:
    return parts[0].shape[0], sum(part.shape[1] for part in parts), heads, parts[0].shape[-1] // (3 * heads)


def _level(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Every head brought to a mean square of 1, in fp32, and what it was multiplied by."""
    factor = (x.float().square().mean(-1, keepdim=True) + eps).rsqrt()
    return x.float() * factor, factor


def _pairs(table: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens, d) as its even and its odd columns, for every head."""
    even, odd = table[:, None].unflatten(-1, (-1, 2)).unbind(-1)
    return even, odd


def _plain_back(grad: Tensor, x: Tensor, weight: Tensor, tables: Sequence[tuple[Tensor, Tensor]], eps: float) -> Tensor:
    (c_even, c_odd), (s_even, s_odd) = tables
    even, odd = grad.float().unflatten(-1, (-1, 2)).unbind(-1)
    back = torch.stack([even * c_even + odd * s_odd, odd * c_odd - even * s_even], -1).flatten(-2) * weight.float()
    normal, factor = _level(x.unflatten(-1, (grad.shape[2], -1)), eps)
    return (factor * (back - normal * (back * normal).mean(-1, keepdim=True))).to(x.dtype).flatten(2)
