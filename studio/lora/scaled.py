"""Products of the frozen base in 8 bits (FP8, e4m3): about twice the arithmetic a second on GPUs that have it, with 3 bits of mantissa.

Every row of what is multiplied gets a scale of its own, every weight one. Only the product itself and its gradient on the input run in
8 bits; sums are kept in fp32, the LoRA beside it stays in the base's number format. Both directions need the weight in rows, so it is
kept twice. The exact weights rest in main memory meanwhile: previews draw with the rounded ones, too.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from studio.families.kernels.rounded import FORMAT, LARGEST, rows
from studio.families.offload import Block
from studio.lora.fused import Fused, Product, product_factors

FEWEST = 1024  # features of a layer below which rounding costs more time than the product gains
CAPABLE = (8, 9)


def packed(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A weight (out, in) in 8 bits, its transpose, and its scale, fp32, once for every row of the larger of the two: (1, rows)."""
    scale = weight.abs().amax().float() / LARGEST
    small = (weight.float() / scale).to(FORMAT)
    return small, small.t().contiguous(), scale.expand(1, max(weight.shape)).contiguous()


@torch.library.custom_op("lora_studio::multiplied", mutates_args=())
def multiplied(
    small: Tensor,
    scales: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    inner: Tensor | None,
    outer: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """(n, out) = x weight' + bias + inner outer, in `dtype`.

    small, scales: x, rounded by `rows`. weight: packed, (out, in). inner: (n, r). outer: (r, out).
    """
    each = scale[:, : weight.shape[0]]
    out = torch._scaled_mm(small, weight.t(), scale_a=scales, scale_b=each, bias=bias, out_dtype=dtype, use_fast_accum=True)
    if inner is not None and outer is not None:
        out.addmm_(inner, outer)
    return out


@multiplied.register_fake
def _(small: Tensor, scales: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return small.new_empty((small.shape[0], weight.shape[0]), dtype=rest[-1])


class _Frozen(torch.autograd.Function):
    """(..., out) = x W' + b in 8 bits; its gradient goes to x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, turned: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(turned, scale)
        out = multiplied(*rows(x.reshape(-1, x.shape[-1])), weight, scale, bias, None, None, x.dtype)
        return out.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        turned, scale = ctx.saved_tensors
        found = multiplied(*rows(grad.reshape(-1, grad.shape[-1])), turned, scale, None, None, None, grad.dtype)
        return found.view(*grad.shape[:-1], turned.shape[0]), None, None, None, None


class _Beside(torch.autograd.Function):
    """The same with a LoRA beside it: (..., out) = x W' + b + factor (x down') up'."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, turned: Tensor, scale: Tensor, bias: Tensor | None, *lora: Any) -> Tensor:
        down, up, ctx.factor, ctx.alone = lora
        flat = x.reshape(-1, x.shape[-1])
        inner = flat @ down.t()
        ctx.save_for_backward(x, inner, turned, scale, down, up)
        beside = inner * ctx.factor if ctx.factor != 1.0 else inner
        return multiplied(*rows(flat), weight, scale, bias, beside, up.t(), x.dtype).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, inner, turned, scale, down, up = ctx.saved_tensors
        on_inner, on_down, on_up = product_factors(grad, x, inner, up, ctx.factor)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None, on_down, on_up, None, None
        small, scales = rows(grad.reshape(-1, grad.shape[-1]), alone=ctx.alone)
        found = multiplied(small, scales, turned, scale, None, on_inner, down, grad.dtype)
        return found.view(*grad.shape[:-1], turned.shape[0]), None, None, None, None, on_down, on_up, None, None


class Scaled:
    """Stands in for the forward pass of a layer. alone: whether its gradient comes from a kernel that compiled passes cannot join."""

    def __init__(self, weight: Tensor, bias: Tensor | None, lora: tuple[Tensor, Tensor, float] | None = None, *, alone: bool = False):
        self.operands, self.lora, self.alone = (*packed(weight.data), bias), lora, alone

    def forward(self, x: Tensor) -> Tensor:
        if self.lora is None:
            return _Frozen.apply(x, *self.operands)  # type: ignore[return-value]
        return _Beside.apply(x, *self.operands, *self.lora, self.alone)  # type: ignore[return-value]


def reduce(denoiser: nn.Module, made: Fused) -> int:
    """Let the large frozen products of the repeated blocks run in 8 bits, how many; `made.undo` puts them back."""
    n = 0
    kinds = getattr(denoiser, "_repeated_blocks", None) or []
    for block in [module for module in denoiser.modules() if type(module).__name__ in kinds]:
        rounded: list[Tensor] = []
        for owner, weight, bias, lora in list(_products(block)):
            alone = isinstance(owner, Product)  # of query, key and value at once, whose gradient attention gives
            made.stand_in(owner, Scaled(weight, bias, lora, alone=alone).forward)
            rounded.append(weight)
        if rounded:
            _rest(block, rounded, made)
        n += len(rounded)
    return n


def _products(block: nn.Module) -> Iterator[tuple[nn.Module, Tensor, Tensor | None, tuple[Tensor, Tensor, float] | None]]:
    """The modules of a block that are one large frozen product: weight, bias, and the LoRA beside it."""
    for owner in list(block.modules()):
        product = _product(owner)
        if product is not None:
            weight, bias, down, up = product.operands
            if _large(weight):
                yield owner, weight, bias, (down, up, product.scale)
        elif not type(owner).__name__.startswith("AdaLayerNorm"):  # few rows, and what they give scales everything
            for child in owner.children():
                if type(child) is nn.Linear and _large(child.weight) and not child.weight.requires_grad and not hasattr(owner, "base_layer"):
                    yield child, child.weight, child.bias, None


def _rest(block: nn.Module, rounded: list[Tensor], made: Fused) -> None:
    """Let weights that were rounded rest in main memory until `made.undo`, those of single layers that see the same ones too."""
    device = rounded[0].device
    places = {weight.untyped_storage().data_ptr() for weight in rounded}
    same = [parameter for parameter in block.parameters() if parameter.untyped_storage().data_ptr() in places]
    resting = Block(block, [*rounded, *same], torch.device("cpu"))
    made.after(lambda: resting.bind(resting.home.to(device)))


def _product(module: Any) -> Product | None:
    """The fused product that a module is, or that stands in for it."""
    if isinstance(module, Product):
        return module
    own = getattr(module.__dict__.get("forward"), "__self__", None)
    return own if isinstance(own, Product) else None


def _large(weight: Tensor) -> bool:
    return min(weight.shape) >= FEWEST and not any(side % 16 for side in weight.shape)
