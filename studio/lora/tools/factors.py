"""Singular values of differences, from their factors where they have any; fp64 throughout, so that rounding stays below the fp32 of the result."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from studio.lora.adapter import LowRank

if TYPE_CHECKING:
    from torch import Tensor

EXACT_SIDE = 1024  # the shorter side up to which a whole matrix is decomposed exactly on a CPU
OVERSAMPLING, PASSES = 16, 4  # of the randomized decomposition: columns beyond the rank, and power iterations
NOISE = 1e-12  # singular values below this share of the largest are rounding


@dataclass(frozen=True)
class Spectrum:
    """A difference as u (out, n) * s (n,) @ v (n, in*k*k), s falling. `energy` is the whole squared Frobenius norm, more than s tells if n was cut."""

    u: "Tensor"
    s: "Tensor"
    v: "Tensor"
    shape: tuple[int, ...]
    energy: float

    @property
    def rank(self) -> int:
        """How many singular values are more than rounding; at least 1."""
        return max(1, int((self.s > NOISE * self.s[0]).sum())) if len(self.s) else 1

    def rank_for(self, share: float) -> int:
        """The smallest rank that keeps this share of the squared Frobenius norm, as far as the known values reach."""
        kept = self.s.square().cumsum(0)
        # The last values of an exact decomposition sum up to the whole within rounding.
        enough = kept >= share * self.energy * (1 - 1e-12)
        return min(self.rank, int(enough.nonzero()[0]) + 1) if bool(enough.any()) else self.rank

    def cut(self, rank: int) -> LowRank:
        """The best layer of that rank, or of fewer where there are no more values; both halves of the same size, for fp16's sake."""
        r = min(rank, self.rank)
        root = self.s[:r].sqrt()
        kernel = self.shape[2:]
        down = (root[:, None] * self.v[:r]).float().reshape(r, *self.shape[1:])
        up = (self.u[:, :r] * root).float().reshape(self.shape[0], r, *(1 for _ in kernel))
        return LowRank(down.contiguous(), up.contiguous(), float(r))

    def lost(self, rank: int) -> float:
        """Squared Frobenius norm of what `cut` leaves out."""
        return max(0.0, self.energy - float(self.s[: min(rank, self.rank)].square().sum()))


def stacked(layers: Sequence[tuple[LowRank, float]]) -> LowRank:
    """One layer whose delta is the weighted sum, exactly: factors side by side, ranks added up, alpha = rank."""
    import torch

    downs = [layer.down.float() for layer, _ in layers]
    ups = [layer.up.float() * (weight * layer.alpha / layer.rank) for layer, weight in layers]
    down = torch.cat(downs)
    return LowRank(down, torch.cat(ups, dim=1), float(len(down)))


def of_factors(layer: LowRank) -> Spectrum:
    """From QR of both factors: nothing larger than out x r, in x r and r x r is ever made."""
    import torch

    up = layer.up.double().flatten(1) * (layer.alpha / layer.rank)
    down = layer.down.double().flatten(1)
    left, core_left = torch.linalg.qr(up)
    right, core_right = torch.linalg.qr(down.T)
    u, s, v = torch.linalg.svd(core_left @ core_right.T, full_matrices=False)
    return Spectrum(left @ u, s, v @ right.T, layer.shape, float(s.square().sum()))


def of_matrix(delta: "Tensor", most: int) -> Spectrum:
    """Of a whole difference; at least `most` singular values. Large matrices on a CPU go by random projections, always the same ones."""
    import torch

    matrix = delta.flatten(1)
    energy = float(matrix.double().square().sum())
    short = min(matrix.shape)
    columns = most + OVERSAMPLING
    if short <= EXACT_SIDE or matrix.is_cuda or columns * 4 > short:
        u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
        return Spectrum(u.cpu(), s.cpu(), v.cpu(), tuple(delta.shape), energy)
    matrix = matrix.float()
    basis = torch.randn(matrix.shape[1], columns, generator=torch.Generator().manual_seed(0))
    for _ in range(PASSES):
        basis = torch.linalg.qr(matrix.T @ torch.linalg.qr(matrix @ basis).Q).Q
    left = torch.linalg.qr((matrix @ basis).double()).Q  # what is lost is a small difference of large sums
    u, s, v = torch.linalg.svd(left.T @ matrix.double(), full_matrices=False)
    return Spectrum(left @ u, s, v, tuple(delta.shape), energy)


def share(lost: float, energy: float) -> float:
    """Relative Frobenius norm of what was lost."""
    return math.sqrt(lost / energy) if energy > 0 else 0.0
