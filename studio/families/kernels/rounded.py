# pyright: reportMissingImports=false, reportPossiblyUnboundVariable=false, reportIndexIssue=false
"""Rows rounded to 8 bits (FP8, e4m3) with a scale each, alone and behind what an MLP does between its two products: GELU and its way back.

A program holds one row in registers, in fp32, from the first reading to the rounding, so that memory is passed over once and every GELU
is evaluated once.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

FORMAT = torch.float8_e4m3fn
LARGEST = 448.0  # of that format

if find_spec("triton"):
    import triton
    import triton.language as tl
    from triton.language.extra import libdevice

    @triton.jit
    def _share(x):
        """Of x that its GELU is, in the approximation by tanh: (1 + tanh u) / 2 = 1 / (1 + exp(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
        return libdevice.fast_dividef(1.0, 1.0 + tl.exp2(x * (-2.302208198 - 0.1029432397 * x * x)))

    @triton.jit
    def _made(grad, x, KIND: tl.constexpr):
        """What is rounded. KIND: 0 x itself, 1 its GELU, 2 the gradient on x from that on its GELU."""
        if KIND == 0:
            return x
        if KIND == 1:
            return x * _share(x)
        share = _share(x)
        return grad * (share + x * (share - share * share) * (1.5957691216 + 0.2140644488 * x * x))

    @triton.jit
    def _part(grad, x, first, width, KIND: tl.constexpr, BLOCK: tl.constexpr):
        """From the column `first` on: what is rounded."""
        column = first + tl.arange(0, BLOCK)
        value = tl.load(x + column, column < width, 0.0).to(tl.float32)
        back = tl.load(grad + column, column < width, 0.0).to(tl.float32) if KIND == 2 else value
        return _made(back, value, KIND)

    @triton.jit
    def _most(held):
        return tl.max(tl.abs(held), 0)

    @triton.jit
    def _put(held, factor, out, first, width, BLOCK: tl.constexpr):
        column = first + tl.arange(0, BLOCK)
        tl.store(out + column, (held * factor).to(out.dtype.element_ty), column < width)

    @triton.jit
    def _row(
        before, grad, x, out, scales, beside, grad_step, x_step, ahead, width, KIND: tl.constexpr, AHEAD: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr
    ):
        """One row of x, `width` wide, in two parts, behind one of `before`, `ahead` wide, if AHEAD is not 0. beside, *_step: from row to row."""
        row = tl.program_id(0).to(tl.int64)
        grad, x, out = grad + row * grad_step, x + row * x_step, out + row * (ahead + width)
        one = _part(grad, x, 0, width, KIND, FIRST)
        two = _part(grad, x, FIRST, width, KIND, REST)
        most = tl.maximum(_most(one), _most(two))
        if AHEAD:
            before += row * beside
            three = _part(before, before, 0, ahead, 0, AHEAD)
            most = tl.maximum(most, _most(three))
        most = tl.maximum(most, 1e-12)
        factor = 448.0 / most
        tl.store(scales + row, most / 448.0)
        if AHEAD:
            _put(three, factor, out, 0, ahead, AHEAD)
        _put(one, factor, out + ahead, 0, width, FIRST)
        _put(two, factor, out + ahead, FIRST, width, REST)


WARPS = 8  # of a program
PLAIN, GELU, BACK = 0, 1, 2


def rows(x: Tensor, *, alone: bool = False) -> tuple[Tensor, Tensor]:
    """(n, k) in 8 bits and the scale (n, 1) of every row, fp32.

    Compiled, the passes join those that make x, unless they are to be left alone: then, and not compiled, it is one pass of its own.
    """
    return _plain(x) if torch.compiler.is_compiling() and not alone else rounded(x)


@torch.library.custom_op("lora_studio::rounded", mutates_args=())
def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """`rows` in one pass of its own."""
    return _launch(PLAIN, x) if x.is_cuda else _plain(x)


@torch.library.custom_op("lora_studio::gelu_rounded", mutates_args=())
def gelu_rounded(x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """The GELU (by tanh) of x (n, k), behind the columns of `before` (n, j) if there are any, rounded: (n, j + k) and the scales (n, 1)."""
    if x.is_cuda:
        return _launch(GELU, x, before=before)
    made = torch.nn.functional.gelu(x, approximate="tanh")
    return _plain(made if before is None else torch.cat([before, made], -1))


@torch.library.custom_op("lora_studio::gelu_backward_rounded", mutates_args=())
def gelu_backward_rounded(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient on x (n, k) from that on its GELU, rounded: (n, k) and the scales (n, 1)."""
    return _launch(BACK, x, grad=grad) if x.is_cuda else _plain(torch.ops.aten.gelu_backward(grad, x, approximate="tanh"))


@rounded.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return _empty(x, x.shape[1])


@gelu_rounded.register_fake
def _(x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    return _empty(x, x.shape[1] + (0 if before is None else before.shape[1]))


@gelu_backward_rounded.register_fake
def _(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return _empty(x, x.shape[1])


def _empty(x: Tensor, width: int) -> tuple[Tensor, Tensor]:
    return x.new_empty((x.shape[0], width), dtype=FORMAT), x.new_empty((x.shape[0], 1), dtype=torch.float32)


def _plain(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / LARGEST
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(FORMAT), scale


def _launch(kind: int, x: Tensor, *, grad: Tensor | None = None, before: Tensor | None = None, warps: int = WARPS) -> tuple[Tensor, Tensor]:
    x, grad, before = _in_rows(x), None if grad is None else _in_rows(grad), None if before is None else _in_rows(before)
    ahead = 0 if before is None else before.shape[1]
    out, scales = _empty(x, ahead + x.shape[1])
    first, rest = parts(x.shape[1])
    sizes: dict[str, Any] = {"KIND": kind, "AHEAD": triton.next_power_of_2(ahead) if ahead else 0, "FIRST": first, "REST": rest, "num_warps": warps}
    given = [tensor if tensor is not None else x for tensor in (before, grad)]
    steps = [tensor.stride(0) for tensor in (*given, x)]
    _row[(x.shape[0],)](*given, x, out, scales, *steps, ahead, x.shape[1], **sizes)
    return out, scales


def parts(width: int) -> tuple[int, int]:
    """Two powers of 2 that hold a row: one of 12288 fits to the last column, where one power of 2 would leave a quarter empty."""
    first = 1 << max(0, (width - 1).bit_length() - 1)
    return first, 1 << max(0, (width - first - 1).bit_length())


def _in_rows(x: Tensor) -> Tensor:
    """The same, every row in one stretch of memory; a share of the columns of something wider stays what it is."""
    return x if x.stride(-1) == 1 else x.contiguous()
