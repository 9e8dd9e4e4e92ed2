"""safetensors headers without torch: read strictly, hash."""

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from studio.errors import FormatError

HEADER_LIMIT = 100_000_000  # bytes; what the safetensors library accepts
_SIZES = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16}
_SIZES |= {"U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


@dataclass(frozen=True)
class Header:
    """What a .safetensors file says before its tensors."""

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    offsets: Mapping[str, tuple[int, int]]  # bytes, counted from `start`
    metadata: Mapping[str, str]
    start: int  # where the tensor section begins in the file


def read_header(path: Path) -> Header:
    """The validated header. Raises FormatError in one line if the file is cut short, overlapping or no safetensors at all."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            return _parse(path.name, _raw(path.name, file, size), size)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error})") from None


def tensor_hash(path: Path) -> str:
    """sha256 of the tensor section, 64 hex digits: `sshs_model_hash`, and the source of Civitai's AutoV3."""
    start = read_header(path).start
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def file_hashes(path: Path) -> dict[str, str]:
    """The hashes that Civitai and other clients know a file by: SHA256, AutoV1, AutoV2, AutoV3."""
    whole, tensors, legacy = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    start = read_header(path).start
    position = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            whole.update(chunk)
            tensors.update(chunk[max(0, start - position) :])
            legacy.update(chunk[max(0, 0x100000 - position) : max(0, 0x110000 - position)])
            position += len(chunk)
    sha256 = whole.hexdigest()
    return {"SHA256": sha256, "AutoV1": legacy.hexdigest()[:8], "AutoV2": sha256[:10], "AutoV3": tensors.hexdigest()[:12]}


def hash_entries(digest: str) -> dict[str, str]:
    """The metadata that carries the hash of the tensor section."""
    return {"sshs_model_hash": digest, "modelspec.hash_sha256": "0x" + digest}


def compose_header(header: Header, metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a file with these tensors and that metadata; the same bytes for the same input."""
    table: dict[str, Any] = {"__metadata__": {key: metadata[key] for key in sorted(metadata)}} if metadata else {}
    for key in sorted(header.offsets, key=lambda name: header.offsets[name]):
        table[key] = {"dtype": header.dtypes[key], "shape": list(header.shapes[key]), "data_offsets": list(header.offsets[key])}
    raw = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    if len(raw) > HEADER_LIMIT:
        raise FormatError(f"the metadata makes a header of {len(raw)} bytes, more than the {HEADER_LIMIT} that readers accept; leave out the pictures in it")
    return struct.pack("<Q", len(raw)) + raw


def parse_header(name: str, payload: bytes) -> Header:
    """The header of a file that is in memory."""
    return _parse(name, _raw(name, BytesIO(payload), len(payload)), len(payload))


def rewrite_metadata(path: Path, metadata: Mapping[str, str], target: Path | None = None) -> None:
    """Write the file anew with this metadata and the same tensor bytes, in its place or as `target`."""
    header = read_header(path)

    def chunks() -> Iterator[bytes]:
        yield compose_header(header, metadata)
        with path.open("rb") as file:
            file.seek(header.start)
            while chunk := file.read(1 << 20):
                yield chunk

    write_atomic(target or path, chunks())


def write_atomic(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """The whole file or nothing: written beside its place, flushed to disk, then renamed. Raises FormatError if it cannot be."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise FormatError(f"{path}: cannot be written ({error.strerror or error}); choose another place or free some space") from None
    finally:
        with suppress(OSError):  # where nothing can be written, nothing is left either
            part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there; the rename is durable enough
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _raw(name: str, file: BinaryIO, size: int) -> bytes:
    if size < 10:
        raise FormatError(f"{name}: is {size} bytes, too short for a .safetensors file")
    (length,) = struct.unpack("<Q", file.read(8))
    if length > HEADER_LIMIT:
        raise FormatError(f"{name}: is not a .safetensors file (its header would be {length} bytes)")
    if length + 8 > size:
        raise FormatError(f"{name}: is cut off inside its header; copy or download it again")
    raw = file.read(length)
    if not raw.startswith(b"{"):
        raise FormatError(f"{name}: is not a .safetensors file (its header is no JSON object)")
    return raw


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _parse(name: str, raw: bytes, size: int) -> Header:
    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name}: has a broken header ({error}); copy or download it again") from None
    metadata = table.pop("__metadata__", {}) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{name}: has metadata that is not text; it breaks the .safetensors format")
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    offsets: dict[str, tuple[int, int]] = {}
    for key, entry in table.items():
        shapes[key], dtypes[key], offsets[key] = _entry(name, key, entry)
    start = 8 + len(raw)
    _check_layout(name, offsets, size - start)
    return Header(shapes, dtypes, offsets, metadata, start)


def _entry(name: str, key: str, entry: Any) -> tuple[tuple[int, ...], str, tuple[int, int]]:
    try:
        shape, dtype, (begin, end) = tuple(entry["shape"]), entry["dtype"], entry["data_offsets"]
        numbers = (*shape, begin, end)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError
        bits = math.prod(shape) * _SIZES[dtype]
    except (KeyError, TypeError, ValueError):
        raise FormatError(f"{name}: tensor {key!r} has a broken header entry; copy or download the file again") from None
    if bits != 8 * (end - begin):
        raise FormatError(f"{name}: tensor {key!r} of shape {list(shape)} does not fill its bytes; the file is broken")
    return shape, dtype, (begin, end)


def _check_layout(name: str, offsets: Mapping[str, tuple[int, int]], available: int) -> None:
    expected = 0
    for key, (begin, end) in sorted(offsets.items(), key=lambda item: item[1]):
        if begin != expected:
            raise FormatError(f"{name}: tensor {key!r} overlaps another or leaves a gap; the file is broken")
        expected = end
    if expected > available:
        raise FormatError(f"{name}: is cut off, {expected - available} bytes are missing; copy or download it again")
    if expected < available:
        raise FormatError(f"{name}: has {available - expected} bytes behind its last tensor; the file is broken")
