"""Write a large .safetensors file tensor by tensor: header first, whole or not at all."""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from studio import metadata as headers
from studio.errors import FormatError

if TYPE_CHECKING:
    from torch import Tensor

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_NO_HASH = "0" * 64  # of the length of the real one, which is known only when all is written


@dataclass(frozen=True)
class Entry:
    """A tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # as headers call it

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * BYTES[self.dtype]


def ordered(entries: Sequence[Entry]) -> list[Entry]:
    """In the order of the file: wide numbers first, so that each begins at a multiple of its size."""
    return sorted(entries, key=lambda entry: (-BYTES[entry.dtype], entry.name))


class Writer:
    """A context: `write` takes the tensors in the order of `entries`; leaving without an error puts the file in its place."""

    def __init__(self, path: Path, entries: Sequence[Entry], metadata: Mapping[str, str]) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._metadata = dict(metadata)
        self._waiting = list(reversed(entries))
        self._header = _header(entries)
        self._digest = hashlib.sha256()

    def __enter__(self) -> "Writer":
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("wb")
            self._file.write(self._head(_NO_HASH))
        except OSError as error:
            self._part.unlink(missing_ok=True)
            raise self._failed(error) from None
        return self

    def write(self, tensor: "Tensor") -> None:
        """The next tensor, already in its number format."""
        import torch

        entry = self._waiting.pop()
        if tuple(tensor.shape) != entry.shape:
            raise FormatError(f"{entry.name}: {list(tensor.shape)} was to be {list(entry.shape)}; the model is broken")
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        if content.nbytes != entry.n_bytes:
            raise FormatError(f"{entry.name}: {tensor.dtype} was to be {entry.dtype}; the model is broken")
        self._digest.update(content)
        try:
            self._file.write(content)
        except OSError as error:
            raise self._failed(error) from None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as error:
            raise self._failed(error) from None
        finally:
            self._file.close()
            with suppress(OSError):
                self._part.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        """Hash of the tensors written so far."""
        return self._digest.hexdigest()

    def _finish(self) -> None:
        if self._waiting:
            raise FormatError(f"{self._path.name}: {len(self._waiting)} tensors were not written; the file was given up")
        self._file.seek(0)
        self._file.write(self._head(self.sha256))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self._path)
        if os.name != "nt":
            handle = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def _head(self, digest: str) -> bytes:
        stated = {"modelspec.hash_sha256": "0x" + digest} if "modelspec.title" in self._metadata else {}
        return headers.compose_header(self._header, {**self._metadata, **stated})

    def _failed(self, error: OSError) -> FormatError:
        return FormatError(f"{self._path}: cannot be written ({error.strerror or error}); choose another place or free some space")


def _header(entries: Sequence[Entry]) -> headers.Header:
    offsets, position = {}, 0
    for entry in entries:
        offsets[entry.name] = (position, position + entry.n_bytes)
        position += entry.n_bytes
    return headers.Header({e.name: e.shape for e in entries}, {e.name: e.dtype for e in entries}, offsets, {}, 0)
