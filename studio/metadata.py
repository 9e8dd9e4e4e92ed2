"""Metadata and hashes of .safetensors files, without torch: computed, written, replaced. Reading is container.py's."""

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from studio.container import HEADER_LIMIT, Header, parse_header, read_header
from studio.errors import FormatError

__all__ = ["Header", "compose_header", "file_hashes", "hash_entries", "parse_header", "read_header", "rewrite_metadata", "tensor_hash", "write_atomic"]


def tensor_hash(path: Path) -> str:
    """sha256 of the tensor section, 64 hex digits: `sshs_model_hash`, and the source of Civitai's AutoV3."""
    start = read_header(path).start
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def file_hashes(path: Path, rare: bool = False) -> dict[str, str]:
    """The hashes that Civitai and other clients know a file by: SHA256, AutoV1, AutoV2, AutoV3.

    rare: CRC32 too, and BLAKE3 where the package blake3 is installed.
    """
    whole, tensors, legacy = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    crc, blake = 0, _blake3() if rare else None
    start = read_header(path).start
    position = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            whole.update(chunk)
            tensors.update(chunk[max(0, start - position) :])
            legacy.update(chunk[max(0, 0x100000 - position) : max(0, 0x110000 - position)])
            position += len(chunk)
            crc = zlib.crc32(chunk, crc) if rare else 0
            if blake is not None:
                blake.update(chunk)
    sha256 = whole.hexdigest()
    found = {"SHA256": sha256, "AutoV1": legacy.hexdigest()[:8], "AutoV2": sha256[:10], "AutoV3": tensors.hexdigest()[:12]}
    return found | ({"CRC32": f"{crc:08X}"} if rare else {}) | ({"BLAKE3": blake.hexdigest()} if blake is not None else {})


def _blake3() -> Any:
    """A hasher of the optional package, or None."""
    try:
        return import_module("blake3").blake3()
    except ImportError:
        return None


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
