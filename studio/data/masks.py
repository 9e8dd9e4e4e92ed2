"""Masks beside pictures: white is learned, black is not.

`cat-masklabel.png` beside `cat.png`, else `masks/cat.png`, else the picture's own transparency. Torch-free but for `grid`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from studio.data.buckets import Crop
from studio.data.captions import fold
from studio.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

ENDING = "-masklabel"
FOLDER = "masks"
SUFFIXES = (".png", ".webp", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")


def is_mask_name(name: str) -> bool:
    return PurePath(name).stem.lower().endswith(ENDING)


def mask_files(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Folded stem of a picture -> its mask. names: the files directly in the folder; links are not followed out of it."""
    found: dict[str, Path] = {}
    beside = folder / FOLDER
    if beside.is_dir() and not beside.is_symlink():
        inside = (path for path in sorted(beside.iterdir()) if path.is_file() and not path.is_symlink())
        found = {fold(path.stem): path for path in inside if path.suffix.lower() in SUFFIXES}
    for name in names:
        if is_mask_name(name):
            found[fold(PurePath(name).stem[: -len(ENDING)])] = folder / name
    return found


def mask_of(name: str, masks: Mapping[str, Path]) -> Path | None:
    return masks.get(fold(PurePath(name).stem))


def grid(picture: Path, mask: Path | None, crop: Crop, mirrored: bool, size: tuple[int, int]) -> "Tensor":
    """(1, h, w) in [0, 1]: resized, cut and mirrored as the picture is, then averaged over the area of each latent.

    size: h, w of the latents. A picture without mask or transparency counts whole. Raises ImageError where mask and picture differ in shape.
    """
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    found = _levels(picture, mask)
    if found is None:
        return torch.ones(1, *size)
    if abs(found.width * crop.original[1] - found.height * crop.original[0]) > max(crop.original):
        raise ImageError(f"{(mask or picture).name}: a mask of {found.width}x{found.height} does not fit a picture of {crop.original[0]}x{crop.original[1]}")
    scaled = found.resize(crop.resized, Image.Resampling.BOX) if found.size != crop.resized else found
    cut = scaled.crop((crop.left, crop.top, crop.left + crop.bucket[0], crop.top + crop.bucket[1]))
    levels = torch.from_numpy(np.array(ImageOps.mirror(cut) if mirrored else cut, dtype=np.float32)) / 255
    return torch.nn.functional.adaptive_avg_pool2d(levels[None], size)


def _levels(picture: Path, mask: Path | None) -> "Image | None":
    from studio.data.decoding import decode, decode_noted

    return decode(mask).convert("L") if mask else decode_noted(picture).alpha
