"""The .safetensors container, read strictly and without torch: a file is refused here or its header can be relied upon.

Stricter than the safetensors library: also no file without tensors, no tensor without elements, no name that is empty or looks like a
path, no header that would cost more memory to parse than a LoRA or checkpoint can need. Format: huggingface/safetensors, README.
"""

import json
import math
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from studio.errors import FormatError

HEADER_LIMIT = 8 * 2**20  # bytes. The library takes 100 MB, but parsing what can be in it takes gigabytes; real headers stay under 3 MB
TENSOR_LIMIT = 100_000
DIMENSION_LIMIT = 16
CHUNK = 4 * 2**20
_SIZES = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16}
_SIZES |= {"U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
# What torch calls the formats that it computes with.
TORCH: Mapping[str, str] = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"},
}
# Bits that are all set where a number is infinite or none. E4M3 has no infinity and one NaN, which is checked without its sign.
EXPONENTS = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000), "F64": ("<u8", 0x7FF << 52)}
EXPONENTS |= {"F8_E4M3": ("u1", 0x7F), "F8_E5M2": ("u1", 0x7C)}

_PICKLE = "is a PyTorch pickle file (.ckpt, .pt), which can run code when opened, so the studio never does; get the .safetensors version"
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", "is a GGUF file of quantised weights; get the .safetensors version"),
    (b"\x89HDF", "is an HDF5 file; get the .safetensors version"),
    (b"\x93NUMPY", "is a NumPy file; get the .safetensors version"),
    (b"\x1f\x8b", "is a gzip archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive; unpack it first"),
    (b"Rar!", "is a RAR archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is a Zstandard archive; unpack it first"),
    (b"\x89PNG", "is a PNG picture, not a LoRA"),
    (b"\xff\xd8\xff", "is a JPEG picture, not a LoRA"),
    (b"GIF8", "is a GIF picture, not a LoRA"),
    (b"%PDF", "is a PDF document, not a LoRA"),
    (b"\x7fELF", "is a program, not a LoRA"),
    (b"MZ", "is a program, not a LoRA"),
    (b"SQLite format 3", "is a database, not a LoRA"),
    (b"version https://git-lfs", "is a git-lfs pointer, not the file itself; run `git lfs pull` or download it from the site"),
)


@dataclass(frozen=True)
class Header:
    """What a .safetensors file says before its tensors."""

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    offsets: Mapping[str, tuple[int, int]]  # bytes, counted from `start`
    metadata: Mapping[str, str]
    start: int  # where the tensor section begins in the file


def read_header(path: Path) -> Header:
    """The validated header. Raises FormatError in one line that says what the file is if it is no sound .safetensors file."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            return _parse(path.name, _raw(path.name, file, size), size)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error})") from None


def parse_header(name: str, payload: bytes) -> Header:
    """The header of a file that is in memory."""
    return _parse(name, _raw(name, BytesIO(payload), len(payload)), len(payload))


def nonfinite(path: Path, header: Header | None = None) -> tuple[str, ...]:
    """Names of the tensors that hold infinities or values that are no numbers. Reads the file in chunks of 4 MiB."""
    header = header or read_header(path)
    return tuple(name for name, dtype in header.dtypes.items() if dtype in EXPONENTS and _has_nonfinite(path, header, name))


def foreign(head: bytes, size: int) -> str:
    """What a file that is no .safetensors file is, from its first 4 KiB, in words that follow its name; empty if it is nothing known."""
    if size == 0:
        return "is empty; copy or download it again"
    if head.startswith(b"PK\x03\x04"):
        return _PICKLE if b"data.pkl" in head else "is a zip archive; unpack it first"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _PICKLE
    if head[257:262] == b"ustar":
        return "is a tar archive; unpack it first"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "is a WebP picture, not a LoRA"
    for magic, words in _MAGIC:
        if head.startswith(magic):
            return words
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page, not a file of weights; the download needs a log-in or another link"
    if text.startswith((b"{", b"[")):
        return "is a JSON text, not a file of weights; perhaps it is an error message of the site it came from"
    return "is a text file, not a file of weights" if text and not set(head) - _TEXT else ""


_TEXT = frozenset(range(32, 256)) - {127} | {9, 10, 13}


def _raw(name: str, file: BinaryIO, size: int) -> bytes:
    head = file.read(4096)
    what = foreign(head, size)
    if size < 10:
        raise FormatError(f"{name}: {what or f'is {size} bytes, too short for a .safetensors file'}")
    (length,) = struct.unpack("<Q", head[:8])
    if not head[8:9] == b"{":
        raise FormatError(f"{name}: {what or 'is not a .safetensors file (its header is no JSON object)'}")
    if length + 8 > size:
        raise FormatError(f"{name}: {what or 'is cut off inside its header; copy or download it again'}")
    if length > HEADER_LIMIT:
        raise FormatError(f"{name}: has a header of {length} bytes, more than the {HEADER_LIMIT} that the studio reads; strip its metadata with another tool")
    file.seek(8)
    return file.read(length)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


def _parse(name: str, raw: bytes, size: int) -> Header:
    if raw.count(b"data_offsets") > TENSOR_LIMIT:
        raise FormatError(f"{name}: holds more than {TENSOR_LIMIT} tensors, which no LoRA or image model does")
    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        metadata = table.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise FormatError(f"{name}: has metadata that is not text, which breaks the .safetensors format; strip its metadata with another tool")
        for text in (*table, *metadata, *metadata.values()):
            text.encode()  # half a surrogate pair can be neither stored nor shown
    except (ValueError, RecursionError, MemoryError) as error:
        reason = "a name or text is no valid Unicode" if isinstance(error, UnicodeError) else str(error)
        raise FormatError(f"{name}: has a broken header ({reason[:100]}); copy or download it again") from None
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    offsets: dict[str, tuple[int, int]] = {}
    for key in [] if _plain(table) else table:
        if not _plain([key]):
            raise FormatError(f"{name}: has a tensor with the name {key[:80]!r}, which no model has; the file is not to be trusted")
    for key, entry in table.items():
        shapes[key], dtypes[key], offsets[key] = _entry(name, key, entry)
    if not offsets:
        raise FormatError(f"{name}: holds no tensors")
    start = 8 + len(raw)
    _check_layout(name, offsets, size - start)
    return Header(shapes, dtypes, offsets, metadata, start)


def _entry(name: str, key: str, entry: Any) -> tuple[tuple[int, ...], str, tuple[int, int]]:
    try:
        shape, dtype, (begin, end) = tuple(entry["shape"]), entry["dtype"], entry["data_offsets"]
        numbers = (*shape, begin, end)
        if len(shape) > DIMENSION_LIMIT or set(map(type, numbers)) != _INTEGERS or min(numbers) < 0 or max(numbers) >= 2**63:
            raise ValueError
        bits = math.prod(shape) * _SIZES[dtype]
    except (KeyError, TypeError, ValueError):
        raise FormatError(f"{name}: tensor {_shown(key)} has a broken header entry; copy or download the file again") from None
    if bits != 8 * (end - begin):
        raise FormatError(f"{name}: tensor {_shown(key)} of shape {list(shape)} does not fill its bytes; the file is broken")
    if not bits and shape != (0,):  # [0] is how v-prediction checkpoints mark themselves
        raise FormatError(f"{name}: tensor {_shown(key)} of shape {list(shape)} has no elements; the file is broken")
    return shape, dtype, (begin, end)


_INTEGERS = {int}


def _plain(names: Collection[str]) -> bool:
    """Whether all names are such as tensors have: not empty, printable, no paths. All at once, which is much faster than one by one."""
    text = " ".join(names)
    return "" not in names and text.isprintable() and "../" not in text and "..\\" not in text


def _shown(key: str) -> str:
    return repr(key if len(key) <= 120 else key[:120] + "…")


def _check_layout(name: str, offsets: Mapping[str, tuple[int, int]], available: int) -> None:
    expected = 0
    for key, (begin, end) in sorted(offsets.items(), key=lambda item: item[1]):
        if begin != expected:
            raise FormatError(f"{name}: tensor {key[:120]!r} overlaps another or leaves a gap; the file is broken")
        expected = end
    if expected > available:
        raise FormatError(f"{name}: is cut off, {expected - available} bytes are missing; copy or download it again")
    if expected < available:
        raise FormatError(f"{name}: has {available - expected} bytes behind its last tensor; the file is broken, or hides something")


def _has_nonfinite(path: Path, header: Header, name: str) -> bool:
    import numpy

    kind, mask = EXPONENTS[header.dtypes[name]]
    begin, end = header.offsets[name]
    return any(bool(((numpy.frombuffer(chunk, kind) & mask) == mask).any()) for chunk in _chunks(path, header.start + begin, end - begin))


def _chunks(path: Path, position: int, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(position)
        while size > 0 and (chunk := file.read(min(CHUNK, size))):
            size -= len(chunk)
            yield chunk
