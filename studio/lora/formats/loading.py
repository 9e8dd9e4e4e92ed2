"""The tensors of a .safetensors file as views of one buffer: read in one piece, and later moved to a device in one piece."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from studio.container import EXPONENTS, TORCH, Header
from studio.errors import FormatError

if TYPE_CHECKING:
    from torch import Tensor

AT_ONCE = 2**18  # numbers that are looked at together: what they take stays near the processor


def load(path: Path, header: Header) -> "dict[str, Tensor]":
    """Every tensor by its name, as it is stored. Raises FormatError if the file changed since its header was read, OSError as reading does."""
    import numpy
    import torch

    section = torch.from_numpy(numpy.fromfile(path, dtype=numpy.uint8, offset=header.start))
    if len(section) < max((end for _, end in header.offsets.values()), default=0):
        raise FormatError(f"{path.name}: cannot be read (it is shorter than its header says); copy or download it again")
    typed: dict[str, Tensor] = {}
    for kind in dict.fromkeys(header.dtypes.values()):
        if kind not in TORCH:
            raise FormatError(f"{path.name}: holds {kind} numbers, which the studio cannot read; save it in 16 bits")
        dtype = getattr(torch, TORCH[kind])
        typed[kind] = section[: len(section) // dtype.itemsize * dtype.itemsize].view(dtype)
    found = {}
    for name, (begin, end) in header.offsets.items():
        numbers, shape = typed[header.dtypes[name]], header.shapes[name]
        size = numbers.itemsize
        # A number of several bytes has to begin at a multiple of its size, which not every writer sees to.
        found[name] = section[begin:end].clone().view(numbers.dtype).view(shape) if begin % size else numbers[begin // size : end // size].view(shape)
    return found


def sound(tensors: "Iterable[Tensor]") -> bool:
    """Whether no number is infinite or none at all. Tensors that lie one after the other, as those of a file do, are looked at in one go.

    By numpy: on a busy machine torch's threads wait for each other at every one of many small tensors.
    """
    runs: list[tuple[Tensor, int]] = []
    end = 0
    for tensor in tensors:
        if not tensor.is_contiguous():
            runs.append((tensor.contiguous(), tensor.numel()))
            end = 0
            continue
        place = tensor.data_ptr()
        if runs and place == end and tensor.dtype == runs[-1][0].dtype:
            runs[-1] = (runs[-1][0], runs[-1][1] + tensor.numel())
        else:
            runs.append((tensor, tensor.numel()))
        end = place + tensor.numel() * tensor.itemsize
    return all(_finite(first.as_strided((n,), (1,), first.storage_offset())) for first, n in runs)


def _finite(flat: "Tensor") -> bool:
    import torch

    code = next(code for code, kind in TORCH.items() if getattr(torch, kind) == flat.dtype)
    if code not in EXPONENTS:
        return True
    kind, mask = EXPONENTS[code]
    numbers = flat.view(getattr(torch, f"int{8 * flat.itemsize}")).numpy().view(kind)
    return not any(int((numbers[begin : begin + AT_ONCE] & mask).max()) == mask for begin in range(0, len(numbers), AT_ONCE))
