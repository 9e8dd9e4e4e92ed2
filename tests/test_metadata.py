"""Hashes follow their definitions; a changed header leaves the tensors alone."""

import hashlib
import struct
import zlib
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import load_file, save_file

from studio import metadata
from studio.errors import FormatError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some.safetensors"
    tensors = {"b": numpy.arange(6, dtype=numpy.float32).reshape(2, 3), "a": numpy.ones((4,), numpy.float16)}
    save_file(tensors, path, {"title": "Ünïcode", "n": "1"})
    return path


def test_hashes_are_those_of_their_definitions(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    tensors = hashlib.sha256(content[start:]).hexdigest()
    assert metadata.tensor_hash(file) == tensors
    found = metadata.file_hashes(file)
    whole = hashlib.sha256(content).hexdigest()
    assert found == {"SHA256": whole, "AutoV1": "e3b0c442", "AutoV2": whole[:10], "AutoV3": tensors[:12]}
    large = tmp_path / "large.safetensors"
    save_file({"a": numpy.random.default_rng(0).random(400_000)}, large)
    assert metadata.file_hashes(large)["AutoV1"] == hashlib.sha256(large.read_bytes()[0x100000:0x110000]).hexdigest()[:8]


def test_rare_hashes_are_computed_on_request(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CRC32 as Civitai writes it; BLAKE3 through the optional package, of which only the update and the digest are used."""
    content = file.read_bytes()

    class Blake:
        blake3 = staticmethod(lambda: hashlib.blake2b(digest_size=32))

    monkeypatch.setattr(metadata, "import_module", lambda name: Blake)
    found = metadata.file_hashes(file, rare=True)
    assert found["CRC32"] == f"{zlib.crc32(content):08X}" and found["BLAKE3"] == hashlib.blake2b(content, digest_size=32).hexdigest()

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(metadata, "import_module", missing)
    assert "BLAKE3" not in metadata.file_hashes(file, rare=True) and "CRC32" not in metadata.file_hashes(file)


def test_rewritten_metadata_leaves_every_tensor_byte(file: Path, tmp_path: Path) -> None:
    before = metadata.read_header(file)
    tensors = load_file(file)
    metadata.rewrite_metadata(file, {"z": "é" * 100, "a": "1"}, tmp_path / "new.safetensors")
    after = metadata.read_header(tmp_path / "new.safetensors")
    assert after.metadata == {"z": "é" * 100, "a": "1"} and after.offsets == before.offsets and after.start % 8 == 0
    assert metadata.tensor_hash(tmp_path / "new.safetensors") == metadata.tensor_hash(file)
    again = load_file(tmp_path / "new.safetensors")
    assert all(numpy.array_equal(again[name], tensors[name]) for name in tensors)
    assert (tmp_path / "new.safetensors").read_bytes()[8:10] == b'{"'
    metadata.rewrite_metadata(file, {"z": "é" * 100, "a": "1"})
    assert file.read_bytes() == (tmp_path / "new.safetensors").read_bytes(), "in its place or elsewhere, the same bytes"


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def chunks():  # type: ignore[no-untyped-def]
        yield b"new"
        raise OSError(28, "No space left on device")

    with pytest.raises(FormatError, match="No space left"):
        metadata.write_atomic(path, chunks())
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_an_unwritable_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FormatError, match="cannot be written"):
        metadata.write_atomic(tmp_path / "file" / "inside", [b"x"])
