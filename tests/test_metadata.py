"""Headers are read strictly, without torch; a changed header leaves the tensors alone."""

import hashlib
import json
import struct
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import load_file, save_file

from studio import metadata
from studio.errors import FormatError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some.safetensors"
    tensors = {"b": numpy.arange(6, dtype=numpy.float32).reshape(2, 3), "a": numpy.ones((4,), numpy.float16), "empty": numpy.zeros((0, 2), numpy.float32)}
    save_file(tensors, path, {"title": "Ünïcode", "n": "1"})
    return path


def crafted(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + body


def test_a_header_tells_shapes_dtypes_and_metadata(file: Path) -> None:
    header = metadata.read_header(file)
    assert header.shapes == {"b": (2, 3), "a": (4,), "empty": (0, 2)}
    assert header.dtypes["a"] == "F16" and header.metadata == {"title": "Ünïcode", "n": "1"}
    begin, end = header.offsets["b"]
    assert numpy.frombuffer(file.read_bytes()[header.start + begin : header.start + end], numpy.float32).tolist() == [0, 1, 2, 3, 4, 5]


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "too short"),
        (b"PK\x03\x04" + b"x" * 100, "is not a .safetensors file"),
        (crafted({"a": ENTRY}, b"0" * 8, length=4000), "cut off inside its header"),
        (crafted({"a": ENTRY}, b"0" * 7), "is cut off, 1 bytes are missing"),
        (crafted({"a": ENTRY}, b"0" * 9), "1 bytes behind its last tensor"),
        (crafted({"a": {**ENTRY, "shape": [3]}}, b"0" * 8), "does not fill its bytes"),
        (crafted({"a": {**ENTRY, "shape": [-2]}}, b"0" * 8), "broken header entry"),
        (crafted({"a": {**ENTRY, "dtype": "F99"}}, b"0" * 8), "broken header entry"),
        (crafted({"a": {**ENTRY, "shape": [True, 2]}}, b"0" * 8), "broken header entry"),
        (crafted({"a": 7}, b"0" * 8), "broken header entry"),
        (crafted({"a": ENTRY, "b": ENTRY}, b"0" * 8), "overlaps another"),
        (crafted({"a": ENTRY, "b": {**ENTRY, "data_offsets": [16, 24]}}, b"0" * 24), "leaves a gap"),
        (crafted({"__metadata__": {"n": 1}}), "metadata that is not text"),
        (crafted(b'{"a": {}, "a": {}}'), "a name occurs twice"),
        (crafted(b"{" + b"[" * 90_000), "broken header"),
        (crafted(b'["a"]'), "no JSON object"),
        (crafted(b"{\xff}"), "broken header"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=says) as caught:
        metadata.read_header(path)
    assert "\n" not in str(caught.value) and "broken.safetensors" in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="No such file"):
        metadata.read_header(tmp_path / "none.safetensors")


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
