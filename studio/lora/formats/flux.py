"""FLUX.1 layers: several of diffusers' modules are one matrix in the makers' names, so layers are fused and split. Pure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from studio.lora.adapter import LowRank

if TYPE_CHECKING:
    from torch import Tensor


def fuse(layers: Sequence[LowRank | None], sizes: Sequence[int]) -> LowRank:
    """One layer from those of the parts: down stacked, up block-diagonal with true zeros, alpha / rank kept. None is an untrained part."""
    import torch

    present = [layer for layer in layers if layer is not None]
    scales = {layer.alpha / layer.rank for layer in present}
    scale = scales.pop() if len(scales) == 1 else 1.0
    total = sum(layer.rank for layer in present)
    down = torch.cat([layer.down.float() for layer in present])
    up = torch.zeros(sum(sizes), total)
    row = column = 0
    for layer, size in zip(layers, sizes, strict=True):
        if layer is not None:
            block = layer.up.float()
            up[row : row + size, column : column + layer.rank] = block if not scales else block * (layer.alpha / layer.rank)
            column += layer.rank
        row += size
    return LowRank(down, up, scale * total)


def split(fused: LowRank, sizes: Sequence[int]) -> list[LowRank | None]:
    """The layers of the parts. Ranks that fusing had added up come apart again; None for a part that was not trained."""
    scale = fused.alpha / fused.rank
    blocks = fused.up.split(list(sizes))
    columns = _columns(blocks, fused.rank)
    if columns is None:  # all parts share one down matrix
        return [LowRank(fused.down.clone(), block.contiguous(), fused.alpha) for block in blocks]
    found: list[LowRank | None] = []
    for block, own in zip(blocks, columns, strict=True):
        rank = len(own)
        found.append(LowRank(fused.down[own].contiguous(), block[:, own].contiguous(), scale * rank) if rank else None)
    return found


def _columns(blocks: "Sequence[Tensor]", rank: int) -> list[list[int]] | None:
    """Which columns of up belong to which part; None if some column serves several."""
    import torch

    used = torch.stack([(block != 0).any(dim=0) for block in blocks])
    n = len(blocks)
    if rank % n == 0:
        own = torch.arange(rank) // (rank // n)
        if not (used & (own != torch.arange(n)[:, None])).any():
            return [torch.where(own == index)[0].tolist() for index in range(n)]
    if (used.sum(dim=0) > 1).any():
        return None
    return [torch.where(row)[0].tolist() for row in used]
