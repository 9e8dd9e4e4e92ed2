"""The difference of a layer as a product of two factors, up (out, R) @ down (R, in * k * k), in fp32: what a side path runs on."""

import math
from typing import TYPE_CHECKING

from studio.lora.adapter import Hadamard, Kronecker, Layer, LowRank

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 0.5  # of the layer's smaller side: above that the two products cost as much as the whole matrix


def low_rank(layer: Layer) -> "tuple[Tensor, Tensor] | None":
    """Factors whose product is the layer's delta exactly but for rounding; None where none are much smaller than the matrix."""
    if isinstance(layer, LowRank):
        up, scale = layer.up.float().flatten(1), layer.alpha / layer.rank
        return up if scale == 1 else up * scale, layer.down.float().flatten(1)
    found = _hadamard(layer) if isinstance(layer, Hadamard) else _kronecker(layer) if isinstance(layer, Kronecker) else None
    return found if found and found[1].shape[0] <= LARGEST * min(layer.shape[0], math.prod(layer.shape[1:])) else None


def whole(delta: "Tensor") -> "tuple[Tensor, Tensor]":
    """Factors of a difference that has no short form: the matrix itself beside an identity."""
    import torch

    return torch.eye(delta.shape[0], device=delta.device), delta.float().flatten(1)


def _hadamard(layer: Hadamard) -> "tuple[Tensor, Tensor] | None":
    """(a1 b1) * (a2 b2) = sum over i, j of (a1_i * a2_j) (b1_i * b2_j): rank r * r."""
    if layer.t1 is not None or layer.t2 is not None:
        return None
    up = layer.w1_a.float()[:, :, None] * layer.w2_a.float()[:, None, :]
    down = layer.w1_b.float()[:, None, :] * layer.w2_b.float()[None, :, :]
    return up.flatten(1) * (layer.alpha / layer.rank), down.flatten(0, 1)


def _kronecker(layer: Kronecker) -> "tuple[Tensor, Tensor] | None":
    """(p q) (x) (x y) = (p (x) x) (q (x) y)."""
    import torch

    if layer.t2 is not None:
        return None
    (p, q), (x, y) = _pair(layer.w1), _pair(layer.w2)
    scale = layer.alpha / layer.factor_rank if layer.factor_rank else 1.0
    up = torch.kron(p * scale, x)
    begin, end = layer.rows or (0, up.shape[0])
    return up[begin:end], torch.kron(q, y)


def _pair(factors: "tuple[Tensor, ...]") -> "tuple[Tensor, Tensor]":
    """A factor as a product: the stored pair, or the matrix beside an identity of its smaller side."""
    import torch

    if len(factors) == 2:
        return factors[0].float(), factors[1].float().flatten(1)
    matrix = factors[0].float().flatten(1)
    out, wide = matrix.shape
    eye = torch.eye(min(out, wide), device=matrix.device)
    return (eye, matrix) if out <= wide else (matrix, eye)
