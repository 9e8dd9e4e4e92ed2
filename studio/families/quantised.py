"""A frozen base in fewer bits: its linear layers hold codes and scales and give their products in the base's number format.

Weights alone are rounded, never activations, and gradients pass to the input: what a LoRA learns on such a base is right for the rounded
weights. Everything is plain buffers, which move, page and fingerprint like any other tensor.

    int8   one scale a row, 255 levels
    fp8    e4m3, one scale a row
    nf4    4 bits on the quantiles of a normal distribution, one scale every 64 numbers (QLoRA, arXiv 2305.14314), by bitsandbytes
"""

import re
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from studio.errors import SettingsError

BLOCK = 64  # numbers with one nf4 scale
FP8 = torch.float8_e4m3fn
BITS = {"int8": 8.0, "fp8": 8.0, "nf4": 4 + 32 / BLOCK}  # of a number, the scales of rows not counted
INSIDE = re.compile(r"\.\d+\.")  # layers of the repeated blocks; embedders and the last layers stay as they are


def check(format: str) -> None:
    """Raise SettingsError if a package is missing for the format."""
    if format == "nf4" and find_spec("bitsandbytes") is None:
        raise SettingsError("base_format nf4: the package bitsandbytes is not installed; pip install bitsandbytes, or take int8 or fp8")


def quantise(model: nn.Module, format: str, device: torch.device, rest: torch.device | None = None) -> int:
    """Put the linear layers of the model's blocks into the format, one after another, on the device; how many there are.

    The model comes from the CPU whole, so the device never holds a layer in full but the one that is being rounded. It is then put
    on `rest`, the device if none is named.
    """
    found = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear and INSIDE.search(f"{name}.")]
    rest = rest or device
    for name, module in found:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Quantised(module, format, device).to(rest))
    model.to(rest)
    return len(found)


class Quantised(nn.Linear):
    """A frozen linear layer of rounded weights. `weight` is made anew each time it is asked for."""

    def __init__(self, linear: nn.Linear, format: str, device: torch.device):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.format = linear.in_features, linear.out_features, format
        self.dtype = linear.weight.dtype
        weight = linear.weight.detach().to(device)
        self.register_parameter("bias", None if linear.bias is None else nn.Parameter(linear.bias.detach().to(device), requires_grad=False))
        codes, scales = (_four_bits if format == "nf4" else _rows)(weight, format)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.dense()

    def dense(self) -> Tensor:
        """The rounded weights (out, in) in the base's number format."""
        if self.format == "nf4":
            return _unpacked(self.codes, self.scales, (self.out_features, self.in_features), self.dtype)
        codes = self.codes.view(FP8) if self.format == "fp8" else self.codes
        return codes.to(self.dtype).mul_(self.scales)

    def forward(self, input: Tensor) -> Tensor:
        # Views are made out here: whoever adds to the output in place could not add to one made inside.
        return _Product.apply(input.reshape(-1, self.in_features), self).view(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, format={self.format}"

    def _apply(self, fn: Any, recurse: bool = True) -> "Quantised":
        """A move to another device; another number format is that of the products, and codes and scales stay as they are."""
        probe = fn(torch.zeros((), dtype=self.dtype, device=self.codes.device))
        codes, scales = self.codes.to(probe.device), self.scales.to(probe.device)
        super()._apply(fn, recurse)
        self.dtype, self.codes, self.scales = probe.dtype, codes, scales if self.format == "nf4" else scales.to(probe.dtype)
        return self


class _Product(torch.autograd.Function):
    """x W' + b for x (n, in); backward makes W anew rather than keep it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Quantised) -> Tensor:
        ctx.layer = layer
        return functional.linear(x, layer.dense().to(x.dtype), layer.bias if layer.bias is None else layer.bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.layer.dense().to(grads[0].dtype), None


def _rows(weight: Tensor, format: str) -> tuple[Tensor, Tensor]:
    """Codes (out, in) and scales (out, 1), which are already rounded to the number format they are used in."""
    most = torch.finfo(FP8).max if format == "fp8" else 127.0
    largest = weight.float().abs().amax(1, keepdim=True)
    scales = torch.where(largest > 0, largest / most, 1.0).to(weight.dtype)
    levels = (weight.float() / scales.float()).clamp_(-most, most)
    # Bytes, because whoever sees a floating-point weight would make a LoRA of the same format beside it.
    return (levels.to(FP8).view(torch.uint8) if format == "fp8" else levels.round_().to(torch.int8)), scales


def _four_bits(weight: Tensor, format: str) -> tuple[Tensor, Tensor]:
    """Packed codes (n / 2, 1) and scales (n / 64,) in fp32."""
    from bitsandbytes import functional as bnb

    codes, state = bnb.quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type=format, compress_statistics=False)
    return codes, state.absmax


def _unpacked(codes: Tensor, scales: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    from bitsandbytes import functional as bnb

    state = bnb.QuantState(absmax=scales, shape=torch.Size(shape), code=_levels(codes.device), blocksize=BLOCK, quant_type="nf4", dtype=dtype)
    return bnb.dequantize_4bit(codes, state)


_LEVELS: dict[torch.device, Tensor] = {}


def _levels(device: torch.device) -> Tensor:
    from bitsandbytes import functional as bnb

    if device not in _LEVELS:
        _LEVELS[device] = bnb.get_4bit_type("nf4", device=device)
    return _LEVELS[device]
