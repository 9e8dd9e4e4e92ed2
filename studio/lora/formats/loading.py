"""The tensors of a .safetensors file as views of one buffer: read in one piece, and later moved to a device in one piece."""

from pathlib import Path
from typing import TYPE_CHECKING

from studio.container import TORCH, Header
from studio.errors import FormatError

if TYPE_CHECKING:
    from torch import Tensor


def load(path: Path, header: Header) -> "dict[str, Tensor]":
    """Every tensor by its name, as it is stored. Raises FormatError if the file changed since its header was read, OSError as reading does."""
    import numpy
    import torch

    section = torch.from_numpy(numpy.fromfile(path, dtype=numpy.uint8, offset=header.start))
    if len(section) < max((end for _, end in header.offsets.values()), default=0):
        raise FormatError(f"{path.name}: cannot be read (it is shorter than its header says); copy or download it again")
    found = {}
    for name, (begin, end) in header.offsets.items():
        kind = TORCH.get(header.dtypes[name])
        if kind is None:
            raise FormatError(f"{path.name}: holds {header.dtypes[name]} numbers, which the studio cannot read; save it in 16 bits")
        dtype = getattr(torch, kind)
        piece = section[begin:end]
        # A number of several bytes has to begin at a multiple of its size, which not every writer sees to.
        piece = piece.clone() if piece.storage_offset() % dtype.itemsize else piece
        found[name] = piece.view(dtype).view(header.shapes[name])
    return found
