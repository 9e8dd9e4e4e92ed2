"""FLUX.1 layers: several of diffusers' modules are one matrix in the makers' names, so layers are fused and split by rows. Pure.

Every kind of layer is split exactly and, when its parts come together again unchanged, fused to what it was.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from studio.errors import FormatError
from studio.families import flux_names
from studio.lora.adapter import Decomposed, Difference, Hadamard, Kronecker, Layer, LowRank, needs_base, tensors

if TYPE_CHECKING:
    from torch import Tensor


def fuse(layers: Sequence[Layer | None], sizes: Sequence[int]) -> Layer:
    """One layer from those of the parts, which have `sizes` rows; None is an untrained part.

    Parts of different kinds become a full difference. Raises FormatError where only some parts are DoRA.
    """
    import torch

    present = [layer for layer in layers if layer is not None]
    if any(needs_base(layer) for layer in present):
        return _fuse_decomposed(layers, sizes)
    if all(isinstance(layer, LowRank) for layer in present):
        return _fuse_low_rank([layer if isinstance(layer, LowRank) else None for layer in layers], sizes)
    if len(present) == len(layers):
        whole = _rejoined(present)
        if whole is not None:
            return whole
    if all(isinstance(layer, Hadamard) and layer.t1 is None for layer in present):
        return _fuse_hadamard([layer if isinstance(layer, Hadamard) else None for layer in layers], sizes)
    width = present[0].shape[1]
    zeros = [torch.zeros(size, width) if layer is None else None for layer, size in zip(layers, sizes, strict=True)]
    return Difference(torch.cat([_plain_delta(layer) if zero is None else zero for layer, zero in zip(layers, zeros, strict=True)]))


def split(fused: Layer, sizes: Sequence[int]) -> list[Layer | None]:
    """The layers of the parts. Ranks that fusing had added up come apart again; None for a part that was not trained."""
    if isinstance(fused, LowRank):
        return list(_split_low_rank(fused, sizes))
    if isinstance(fused, Decomposed):
        if fused.axis == "input":
            raise FormatError("a DoRA over the columns of a fused layer couples its parts; bake it into a plain LoRA with the program that made it")
        parts = [part or _untrained(size, fused.shape[1]) for part, size in zip(split(fused.layer, sizes), sizes, strict=True)]
        return [Decomposed(part, own.contiguous()) for part, own in zip(parts, fused.magnitude.split(list(sizes)), strict=True)]  # type: ignore[arg-type]
    if isinstance(fused, Hadamard) and fused.t1 is None and (own := _blocks(fused, sizes)) is not None:
        return own
    if isinstance(fused, Hadamard):
        axis = 0 if fused.t1 is None else 1
        pairs = zip(fused.w1_a.split(list(sizes), axis), fused.w2_a.split(list(sizes), axis), strict=True)
        return [replace(fused, w1_a=one.contiguous(), w2_a=two.contiguous()) for one, two in pairs]
    if isinstance(fused, Kronecker):
        begin = fused.rows[0] if fused.rows else 0
        ends = [begin + sum(sizes[: i + 1]) for i in range(len(sizes))]
        return [replace(fused, rows=(end - size, end)) for end, size in zip(ends, sizes, strict=True)]
    return [Difference(piece.contiguous()) for piece in fused.weight.split(list(sizes))]


def swapped(layer: Layer) -> Layer:
    """The layer with the two halves of its rows exchanged: (shift, scale) <-> (scale, shift)."""
    swap = flux_names.swap_halves
    if isinstance(layer, LowRank):
        return replace(layer, up=swap(layer.up))
    if isinstance(layer, Decomposed):
        magnitude = swap(layer.magnitude) if layer.axis == "output" else layer.magnitude
        return Decomposed(swapped(layer.layer), magnitude, layer.axis)  # type: ignore[arg-type]
    if isinstance(layer, Hadamard) and layer.t1 is None:
        return replace(layer, w1_a=swap(layer.w1_a), w2_a=swap(layer.w2_a))
    if isinstance(layer, Kronecker) and layer.rows is None and layer.w1[0].shape[0] % 2 == 0:
        return replace(layer, w1=(swap(layer.w1[0]), *layer.w1[1:]))
    return Difference(swap(layer.delta()))


def _plain_delta(layer: Layer | None) -> "Tensor":
    assert layer is not None and not isinstance(layer, Decomposed)
    return layer.delta()


def _untrained(rows: int, columns: int) -> LowRank:
    import torch

    return LowRank(torch.zeros(1, columns), torch.zeros(rows, 1), 1.0)


def _fuse_decomposed(layers: Sequence[Layer | None], sizes: Sequence[int]) -> Decomposed:
    import torch

    found = [layer for layer in layers if isinstance(layer, Decomposed) and layer.axis == "output"]
    if len(found) < len(layers):
        raise FormatError(
            "q, k, v (and the MLP) of a block are one layer in kohya's FLUX.1 format, and only some of them are DoRA by rows; bake the DoRA first"
        )
    return Decomposed(fuse([layer.layer for layer in found], sizes), torch.cat([layer.magnitude for layer in found]))  # type: ignore[arg-type]


def _rejoined(parts: Sequence[Layer]) -> Layer | None:
    """What was split into these parts, if they are the rows of one LoHa or LoKr layer in order."""
    import torch

    first = parts[0]
    if isinstance(first, Hadamard) and first.t1 is None:
        same = [p for p in parts if isinstance(p, Hadamard) and p.alpha == first.alpha and p.t1 is None]
        if len(same) == len(parts) and all(_equal((p.w1_b, p.w2_b), (first.w1_b, first.w2_b)) for p in same):
            return replace(first, w1_a=torch.cat([p.w1_a for p in same]), w2_a=torch.cat([p.w2_a for p in same]))
    if isinstance(first, Kronecker):
        windows = [p for p in parts if isinstance(p, Kronecker) and p.rows and p.alpha == first.alpha and p.kernel == first.kernel]
        if len(windows) == len(parts) and all(_equal(tensors(p), tensors(first)) for p in windows):
            rows = [p.rows or (0, 0) for p in windows]
            whole = replace(first, rows=None)
            if rows[0][0] == 0 and rows[-1][1] == whole.shape[0] and all(a[1] == b[0] for a, b in pairwise(rows)):
                return whole
    return None


def _equal(some: "Sequence[Tensor]", others: "Sequence[Tensor]") -> bool:
    return len(some) == len(others) and all(a is b or (a.shape == b.shape and bool((a == b).all())) for a, b in zip(some, others, strict=True))


def _fuse_low_rank(layers: Sequence[LowRank | None], sizes: Sequence[int]) -> LowRank:
    """down stacked, up block-diagonal with true zeros, alpha / rank kept. Parts that share their down need no more rank than one."""
    import torch

    present = [layer for layer in layers if layer is not None]
    scales = {layer.alpha / layer.rank for layer in present}
    if len(present) > 1 and len(scales) == 1 and all(_equal((layer.down,), (present[0].down,)) for layer in present):
        first = present[0]
        rows = [torch.zeros(size, first.rank) if layer is None else layer.up.float() for layer, size in zip(layers, sizes, strict=True)]
        return LowRank(first.down.float(), torch.cat(rows), first.alpha)
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


def _fuse_hadamard(layers: Sequence[Hadamard | None], sizes: Sequence[int]) -> Hadamard:
    """w1_b and w2_b stacked, w1_a and w2_a block-diagonal with true zeros: each part's rows meet its own factors alone."""
    import torch

    present = [layer for layer in layers if layer is not None]
    total, scales = sum(layer.rank for layer in present), {layer.alpha / layer.rank for layer in present}
    scale = scales.pop() if len(scales) == 1 else 1.0
    ones, twos = torch.zeros(sum(sizes), total), torch.zeros(sum(sizes), total)
    row = column = 0
    for layer, size in zip(layers, sizes, strict=True):
        if layer is not None:
            place = (slice(row, row + size), slice(column, column + layer.rank))
            ones[place] = layer.w1_a.float() if not scales else layer.w1_a.float() * (layer.alpha / layer.rank)
            twos[place] = layer.w2_a.float()
            column += layer.rank
        row += size
    w1_b, w2_b = (torch.cat([getattr(layer, name).float() for layer in present]) for name in ("w1_b", "w2_b"))
    return Hadamard(ones, w1_b, twos, w2_b, scale * total)


def _blocks(fused: Hadamard, sizes: Sequence[int]) -> list[Layer | None] | None:
    """The parts that `_fuse_hadamard` put together; None if their factors are shared."""
    columns = _columns(fused.w1_a.split(list(sizes)), fused.rank)
    if columns is None or columns != _columns(fused.w2_a.split(list(sizes)), fused.rank):
        return None
    found: list[Layer | None] = []
    ones, twos = fused.w1_a.split(list(sizes)), fused.w2_a.split(list(sizes))
    for one, two, own in zip(ones, twos, columns, strict=True):
        factors = (one[:, own], fused.w1_b[own], two[:, own], fused.w2_b[own])
        alpha = fused.alpha / fused.rank * len(own)
        found.append(Hadamard(*(tensor.contiguous() for tensor in factors), alpha=alpha) if own else None)
    return found


def _split_low_rank(fused: LowRank, sizes: Sequence[int]) -> list[LowRank | None]:
    scale = fused.alpha / fused.rank
    blocks = fused.up.split(list(sizes))
    columns = _columns(blocks, fused.rank)
    if columns is None:  # the parts share one down matrix
        trained = [bool(block.any()) for block in blocks]
        return [LowRank(fused.down, block.contiguous(), fused.alpha) if own or not any(trained) else None for block, own in zip(blocks, trained, strict=True)]
    found: list[LowRank | None] = []
    for block, own in zip(blocks, columns, strict=True):
        rank = len(own)
        # Columns in a row are taken as views: no number is then copied.
        picked = slice(own[0], own[-1] + 1) if rank and own[-1] - own[0] == rank - 1 else own
        found.append(LowRank(fused.down[picked], block[:, picked], scale * rank) if rank else None)
    return found


def _columns(blocks: "Sequence[Tensor]", rank: int) -> list[list[int]] | None:
    """Which columns of up belong to which part; None if some column serves several."""
    import torch

    used = torch.stack([_filled(block) for block in blocks])
    n = len(blocks)
    if rank % n == 0:
        own = torch.arange(rank) // (rank // n)
        if not (used & (own != torch.arange(n)[:, None])).any():
            return [torch.where(own == index)[0].tolist() for index in range(n)]
    if not used.any() or (used.sum(dim=0) > 1).any():
        return None
    return [torch.where(row)[0].tolist() for row in used]


def _filled(block: "Tensor") -> "Tensor":
    """Which columns hold anything but zeros. By their bits, where that is possible: several times as fast."""
    import numpy
    import torch

    if block.device.type != "cpu" or not block.is_floating_point():
        return (block != 0).any(dim=0)
    bits = block.view(getattr(torch, f"int{8 * block.itemsize}")).numpy()
    sign = numpy.iinfo(bits.dtype).max  # all bits but the sign: minus zero is zero
    return torch.from_numpy((numpy.bitwise_or.reduce(bits, axis=0) & sign) != 0)
