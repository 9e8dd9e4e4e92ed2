"""How far apart two sets of pictures look: colours and strokes, whatever they show.

Every pixel is a point (red, green, blue, edge strength), all in [0, 1]. The points of a set are described by one Gaussian, and two
sets compared by the Fréchet distance of their Gaussians (Dowson and Landau 1982):

    d^2 = |m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2))

It needs no network and some ten pictures a side. It sees palette, contrast and line weight; it does not see what is drawn, nor where.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy
from PIL import Image

from studio.errors import ImageError

SIDE = 128  # pixels of the shorter side; edges only compare at one scale
_LUMA = numpy.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Gaussian:
    """mean (4,), covariance (4, 4), in fp64."""

    mean: Any
    covariance: Any


def style_distance(one: Iterable[Image.Image], other: Iterable[Image.Image]) -> float:
    """The Fréchet distance d of two sets of pictures: 0 for the same colours and edges, about 1 for black against white."""
    return frechet(describe(one), describe(other))


def describe(pictures: Iterable[Image.Image]) -> Gaussian:
    """The Gaussian of all pixels of a set; every picture counts by its area at the common scale. Raises ImageError for an empty set."""
    points = [_points(picture) for picture in pictures]
    if not points:
        raise ImageError("no pictures to compare; name a set that has some")
    together = numpy.concatenate(points)
    return Gaussian(together.mean(axis=0), numpy.cov(together, rowvar=False, bias=True))


def frechet(one: Gaussian, other: Gaussian) -> float:
    """The distance d of two Gaussians, of any dimension."""
    root = _root(one.covariance)
    # (C1 C2)^(1/2) and (C1^(1/2) C2 C1^(1/2))^(1/2) have the same trace; the latter is symmetric.
    shared = numpy.trace(_root(root @ other.covariance @ root))
    squared = ((one.mean - other.mean) ** 2).sum() + numpy.trace(one.covariance) + numpy.trace(other.covariance) - 2 * shared
    return float(numpy.sqrt(max(squared, 0.0)))


def edges(luma: Any) -> Any:
    """Strength of the luminance's slope (H, W) in [0, 1]: Sobel, 1 for a full step straight on."""
    padded = numpy.pad(luma, 1, mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    columns = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    across = (rows[:, 2:] - rows[:, :-2]) / 4
    down = (columns[2:] - columns[:-2]) / 4
    return numpy.minimum(numpy.hypot(across, down), 1.0)


def _points(picture: Image.Image) -> Any:
    """(H * W, 4) at the common scale."""
    picture = picture.convert("RGB")
    scale = SIDE / min(picture.size)
    if scale != 1:
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.LANCZOS)
    colours = numpy.asarray(picture, dtype=numpy.float64) / 255
    return numpy.concatenate([colours, edges(colours @ _LUMA)[..., None]], axis=-1).reshape(-1, 4)


def _root(matrix: Any) -> Any:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = numpy.linalg.eigh(matrix)
    return (vectors * numpy.sqrt(numpy.maximum(values, 0.0))) @ vectors.T
