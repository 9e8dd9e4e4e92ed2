"""Weights from their files straight to a device: several readers, each with page-locked memory of its own, so that reading and copying overlap.

No tensor is ever whole in main memory, and numbers change their format on the device.
"""

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studio import container
from studio.errors import BaseError, FormatError
from studio.families.stored import FLOATS

READERS = 4
CHUNK = 32 * 2**20  # bytes that a reader reads at once; it has twice as many page-locked


def read(files: Iterable[Path], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """All tensors of these .safetensors files on the device, in `dtype`. Raises BaseError for a file that is no sound one, or cut off meanwhile."""
    try:
        headers = [(path, container.read_header(path)) for path in files]
    except FormatError as error:
        raise BaseError(str(error)) from None
    odd = next((f"{path.name}: {name} holds {kind} numbers" for path, header in headers for name, kind in header.dtypes.items() if kind not in FLOATS), "")
    if odd:
        raise BaseError(f"{odd}; a base in full is needed, with floating-point weights")
    places = [
        (name, Place(path, getattr(torch, container.TORCH[header.dtypes[name]]), shape, header.start + header.offsets[name][0]))
        for path, header in headers
        for name, shape in header.shapes.items()
    ]
    reader = Reader(device)
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(lambda place: reader.tensor(place).to(dtype), [place for _, place in places]))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return {name: tensor for (name, _), tensor in zip(places, found, strict=True)}


@dataclass(frozen=True)
class Place:
    """A tensor in a file. start: bytes."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int


@dataclass
class Reader:
    """Reads tensors to a device, from any number of threads."""

    device: torch.device
    _own: threading.local = field(default_factory=threading.local)

    def tensor(self, place: Place) -> Tensor:
        """In the format of the file."""
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():  # a thread begins on the first card
            return self._read(place)

    def _read(self, place: Place) -> Tensor:
        found = torch.empty(place.shape, dtype=place.dtype, device=self.device)
        there = found.view(-1).view(torch.uint8)
        stages = self._stages()
        with place.path.open("rb", buffering=0) as file:
            file.seek(place.start)
            for number, begin in enumerate(range(0, there.numel(), CHUNK)):
                memory, copied = stages[number % len(stages)]
                if copied is not None:
                    copied.synchronize()  # what was read into this memory before has left it
                part = memory[: min(CHUNK, there.numel() - begin)]
                _fill(file, part, place.path)
                there[begin : begin + len(part)].copy_(part, non_blocking=True)
                if copied is not None:
                    copied.record(torch.cuda.current_stream(self.device))
        return found

    def _stages(self) -> list[tuple[Tensor, Any]]:
        """This thread's memory to read into, each with an event after the last copy out of it."""
        if not hasattr(self._own, "stages"):
            cuda = self.device.type == "cuda"
            self._own.stages = [(torch.empty(CHUNK, dtype=torch.uint8, pin_memory=cuda), torch.cuda.Event() if cuda else None) for _ in range(2)]
        return self._own.stages


def _fill(file: Any, memory: Tensor, path: Path) -> None:
    view, done = memory.numpy().data, 0
    while done < len(view):
        n = file.readinto(view[done:])
        if not n:
            raise BaseError(f"{path.name}: ends too early; copy or download it again")
        done += n
