"""PiSSA and OLoRA: the factors start from directions of the base itself, and what they start as is taken off again.

Both are written for a base that is rewritten to W - s B0 A0. Here the base stays as it is, bit for bit and in any number format: a
frozen second adapter of scale -s gives the same sum, and the saved layer of twice the rank, s (B A - B0 A0), is for the base as it was.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from studio.errors import FormatError
from studio.lora.adapter import LowRank
from studio.lora.attach.weights import NAME, taken

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ORIGIN = "origin"
POWER_ITERATIONS = 4  # of the randomized singular value decomposition


def pissa(weight: "Tensor", rank: int) -> "tuple[Tensor, Tensor]":
    """down (r, in), up (out, r) whose product is the best of that rank, sizes shared evenly. Source: arXiv 2404.02948."""
    # Wide enough that the directions which count are exact to rounding; small matrices are decomposed whole.
    wide = min(rank + max(8, rank), min(weight.shape))
    u, s, v = _largest(weight, wide) if wide < min(weight.shape) else _svd(weight)
    root = s[:rank].sqrt()
    return root[:, None] * v[:, :rank].T, u[:, :rank] * root


def olora(weight: "Tensor", rank: int) -> "tuple[Tensor, Tensor]":
    """down (r, in), up (out, r) from a QR decomposition: up is orthonormal. Source: arXiv 2406.01775."""
    import torch

    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]


INITS: "Mapping[str, Callable[[Tensor, int], tuple[Tensor, Tensor]]]" = {"pissa": pissa, "olora": olora}


def begin(module: Any, init: str, device: "torch.device") -> None:
    """Start the layer from its base's own directions, found on the device that trains, wherever the base lies meanwhile.

    The adapter `ORIGIN` must be there beside the trained one.
    """
    import torch
    from peft.utils.integrations import dequantize_module_weight

    own = dequantize_module_weight(module.get_base_layer()).detach().to(device).float().flatten(1)
    rank = module.r[NAME]
    if rank > min(own.shape):
        raise FormatError(f"rank {rank} is more than a layer of shape {list(own.shape)} has directions for init {init}; lower the rank, or use init default")
    down, up = INITS[init](own, rank)
    scaling = float(module.scaling[NAME])
    with torch.no_grad():
        module.lora_A[NAME].weight.copy_((down / scaling).reshape(module.lora_A[NAME].weight.shape))
        module.lora_B[NAME].weight.copy_(up.reshape(module.lora_B[NAME].weight.shape))
    _remember(module, taken(module.lora_A[NAME].weight), taken(module.lora_B[NAME].weight))


def collect(module: Any, trained: LowRank) -> LowRank:
    """The difference from where the layer began, which is what the base does not have yet: twice the rank."""
    import torch

    down, up = module.began
    return LowRank(torch.cat([trained.down, down]), torch.cat([trained.up, -up], dim=1), trained.alpha * 2)


def restore(module: Any, layer: LowRank) -> LowRank:
    """Put the beginning of a saved layer back in its place; its other half is what was trained."""
    rank = layer.rank // 2
    _remember(module, layer.down[rank:].contiguous(), -layer.up[:, rank:].contiguous())
    return LowRank(layer.down[:rank].contiguous(), layer.up[:, :rank].contiguous(), layer.alpha / 2)


def _remember(module: Any, down: "Tensor", up: "Tensor") -> None:
    """The exact beginning for the file, and in the number format of the base for the model."""
    import torch

    module.began = (down, up)
    module.scaling[ORIGIN] = -float(module.scaling[NAME])
    with torch.no_grad():
        module.lora_A[ORIGIN].weight.copy_(down.to(module.lora_A[ORIGIN].weight))
        module.lora_B[ORIGIN].weight.copy_(up.to(module.lora_B[ORIGIN].weight))


def _largest(weight: "Tensor", n: int) -> "tuple[Tensor, Tensor, Tensor]":
    """The n largest singular values and their directions, by random projections that are drawn on the CPU. Source: arXiv 0909.4061, 4.4."""
    import torch

    basis = torch.linalg.qr(weight @ torch.randn(weight.shape[1], n).to(weight)).Q
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(weight @ torch.linalg.qr(weight.T @ basis).Q).Q
    u, s, v = _svd(basis.T @ weight)
    return basis @ u, s, v


def _svd(weight: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
    import torch

    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return u, s, vh.T
