"""Pictures on the way in and out: read, fitted, masked, cut into tiles and put together again. Values in, values out, but for `read`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.data import decoding
from studio.errors import RunError, SettingsError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from torch import Tensor


def read(path: Path, size: tuple[int, int]) -> "Picture":
    """The picture in that file, upright in sRGB, filling width x height; what stands over is cut off evenly."""
    return fitted(decoding.decode(path).convert("RGB"), size)


def read_mask(path: Path, size: tuple[int, int], blur: int) -> "Picture":
    """A mask as greys, fitted like the picture it belongs to, its edge softened. Transparent parts count as black.

    Raises SettingsError if nothing in it is white.
    """
    from PIL import ImageFilter

    mask = fitted(decoding.decode(path, background=(0, 0, 0)).convert("L"), size)
    if not mask.getbbox():
        raise SettingsError("mask: nothing in it is white, so nothing would be drawn; paint what is to change in white")
    return mask.filter(ImageFilter.GaussianBlur(blur / 2)) if blur else mask


def fitted(image: "Picture", size: tuple[int, int]) -> "Picture":
    """The picture at exactly width x height, scaled to fill it and cut around its centre."""
    from PIL import Image, ImageOps

    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def enlarged(image: "Picture", size: tuple[int, int]) -> "Picture":
    from PIL import Image

    return image.resize(size, Image.Resampling.LANCZOS)


def pixels(image: "Picture") -> "Tensor":
    """(1, 3, H, W) in [-1, 1]."""
    import numpy
    import torch

    return torch.from_numpy(numpy.asarray(image, dtype=numpy.float32) / 127.5 - 1).permute(2, 0, 1)[None]


def picture(values: "Tensor") -> "Picture":
    """(1, 3, H, W) in [-1, 1] as a picture. Raises RunError if they are no numbers."""
    from PIL import Image

    if not bool(values.isfinite().all()):
        raise RunError("the picture came out as no numbers; use precision bf16 or fp32, or lower the weights of the LoRAs")
    levels = ((values[0].float() / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)  # where the values are: a quarter of the bytes leave a GPU
    return Image.fromarray(levels.cpu().contiguous().numpy())


def latent_mask(mask: "Picture", shape: "tuple[int, ...] | Any") -> "Tensor":
    """The mask for latents of this shape, (1, 1, h, w) in [0, 1]: a latent is as free as the freest pixel under it."""
    import numpy
    import torch

    levels = torch.from_numpy(numpy.asarray(mask, dtype=numpy.float32) / 255)[None, None]
    return torch.nn.functional.adaptive_max_pool2d(levels, tuple(shape[-2:]))


def composed(drawn: "Picture", own: "Picture", mask: "Picture") -> "Picture":
    """`drawn` where the mask is white, `own` where it is black, to the bit."""
    from PIL import Image

    return Image.composite(drawn, own, mask)


@dataclass(frozen=True)
class Tile:
    """A rectangle of a picture: left and top in pixels; all tiles have one size."""

    left: int
    top: int
    width: int
    height: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.left, self.top, self.left + self.width, self.top + self.height


def tiles(size: tuple[int, int], side: int, overlap: int, multiple: int) -> tuple[Tile, ...]:
    """Tiles of at most side x side that cover the picture, row by row; neighbours share at least `overlap` pixels where there are several.

    All sides and places are multiples of `multiple` if the picture's are. Raises SettingsError if the overlap leaves nothing of a tile.
    """
    side = max(multiple, side // multiple * multiple)
    overlap = -(-overlap // multiple) * multiple
    if overlap >= side:
        raise SettingsError(f"tile_overlap {overlap} leaves nothing of a tile of {side} pixels; take less, or larger tiles")
    columns, rows = (_places(length, side, overlap, multiple) for length in size)
    width, height = (min(length, side) for length in size)
    return tuple(Tile(left, top, width, height) for top in rows for left in columns)


def _places(length: int, side: int, overlap: int, multiple: int) -> list[int]:
    if length <= side:
        return [0]
    n = -(-(length - overlap) // (side - overlap))
    return [min(length - side, i * (length - side) // (n - 1) // multiple * multiple) for i in range(n)]


class Blend:
    """Tiles put together: each counts less towards its edges, so that no seam shows."""

    def __init__(self, size: tuple[int, int]) -> None:
        import torch

        self._sum = torch.zeros(1, 3, size[1], size[0])
        self._weight = torch.zeros(1, 1, size[1], size[0])

    def add(self, tile: Tile, values: "Tensor", overlap: int) -> None:
        """values: (1, 3, H, W) of the tile."""
        down, right = (_ramp(length, overlap) for length in (tile.height, tile.width))
        weight = down[:, None] * right[None, :]
        rows, columns = slice(tile.top, tile.top + tile.height), slice(tile.left, tile.left + tile.width)
        self._sum[..., rows, columns] += values.float().cpu() * weight
        self._weight[..., rows, columns] += weight

    def result(self) -> "Tensor":
        return self._sum / self._weight


def _ramp(length: int, overlap: int) -> "Tensor":
    """Weights along a side: rising over the overlap, 1 in the middle, falling."""
    import torch

    steps = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(steps, steps.flip(0)).clamp(max=max(1, overlap)) / max(1, overlap)
