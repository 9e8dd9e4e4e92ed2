"""A file is refused for what it is, or its header holds: the catalogue of broken, foreign and hostile containers."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save

from studio import container
from studio.errors import FormatError

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DATA = b"0" * 8


def crafted(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + body


def zipped(name: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(name, b"content")
    return made.getvalue()


def tarred() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("file"))
    return made.getvalue()


SOUND = save({"b": numpy.arange(6, dtype=numpy.float32).reshape(2, 3), "a": numpy.ones(4, numpy.float16), "alpha": numpy.array(1.0, numpy.float32)}, {"n": "1"})

BROKEN = {
    "S02 seven bytes": (b"1234567", "text file"),
    "S02 seven binary bytes": (b"\0" * 7, "is 7 bytes, too short"),
    "S03 length zero": (struct.pack("<Q", 0) + b"\0" * 8, "no JSON object"),
    "S04 length 2^64-1": (b"\xff" * 8 + b"{}" + b"\0" * 90, "cut off inside its header"),
    "S06 cut in the header": (crafted({"a": ENTRY}, DATA, length=4000), "cut off inside its header"),
    "S07 no tensors": (crafted({}), "holds no tensors"),
    "S07 metadata alone": (crafted({"__metadata__": {"a": "b"}}), "holds no tensors"),
    "S09 a space first": (crafted(b' {"a": {}}'), "no JSON object"),
    "S10 a list": (crafted(b'["a"]'), "no JSON object"),
    "S11 cut JSON": (crafted(b'{"a": {"dtype": "F32"'), "broken header"),
    "S12 no UTF-8": (crafted(b"{\xff}"), "no valid Unicode"),
    "S12 half a surrogate pair": (crafted(rb'{"\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', DATA), "no valid Unicode"),
    "S13 duplicate tensor": (crafted(b'{"a": {}, "a": {}}'), "a name occurs twice"),
    "S15 duplicate metadata": (crafted(b'{"__metadata__": {}, "__metadata__": {}}'), "a name occurs twice"),
    "S16 duplicate inside metadata": (crafted(b'{"__metadata__": {"a": "1", "a": "2"}}'), "a name occurs twice"),
    "S17 metadata is a number": (crafted({"__metadata__": {"n": 1}, "a": ENTRY}, DATA), "metadata that is not text"),
    "S18 metadata is nested": (crafted({"__metadata__": {"n": {"m": "1"}}, "a": ENTRY}, DATA), "metadata that is not text"),
    "S19 metadata is a list": (crafted({"__metadata__": ["n"], "a": ENTRY}, DATA), "metadata that is not text"),
    "S20 overlap": (crafted({"a": ENTRY, "b": ENTRY}, DATA), "overlaps another"),
    "S21 hole": (crafted({"a": ENTRY, "b": {**ENTRY, "data_offsets": [16, 24]}}, DATA * 3), "leaves a gap"),
    "S22 cut file": (SOUND[:-1], "is cut off, 1 bytes are missing"),
    "S23 reversed offsets": (crafted({"a": {**ENTRY, "data_offsets": [8, 0]}}, DATA), "does not fill its bytes"),
    "S24 negative offset": (crafted({"a": {**ENTRY, "data_offsets": [-8, 0]}}, DATA), "broken header entry"),
    "S25 float offsets": (crafted({"a": {**ENTRY, "data_offsets": [0.0, 8.0]}}, DATA), "broken header entry"),
    "S26 another shape": (crafted({"a": {**ENTRY, "shape": [3]}}, DATA), "does not fill its bytes"),
    "S26 negative shape": (crafted({"a": {**ENTRY, "shape": [-2]}}, DATA), "broken header entry"),
    "S26 a truth as a size": (crafted({"a": {**ENTRY, "shape": [True, 2]}}, DATA), "broken header entry"),
    "S27 overflowing product": (crafted({"a": {**ENTRY, "shape": [2**62, 2**62]}}, DATA), "does not fill its bytes"),
    "S28 product that wraps to 8 bytes": (crafted({"a": {**ENTRY, "shape": [2**32, 2**32, 2]}}, DATA), "does not fill its bytes"),
    "S28 a size beyond 63 bits": (crafted({"a": {**ENTRY, "shape": [2**64 + 2]}}, DATA), "broken header entry"),
    "S30 zero times 2^62": (crafted({"a": {**ENTRY, "shape": [0, 2**62], "data_offsets": [0, 0]}}), "has no elements"),
    "S32 zero size": (crafted({"a": {**ENTRY, "shape": [0, 16], "data_offsets": [0, 0]}}), "has no elements"),
    "S33 unknown dtype": (crafted({"a": {**ENTRY, "dtype": "F128"}}, DATA), "broken header entry"),
    "S34 dtype in small letters": (crafted({"a": {**ENTRY, "dtype": "f32"}}, DATA), "broken header entry"),
    "S34 dtype is a list": (crafted({"a": {**ENTRY, "dtype": ["F32"]}}, DATA), "broken header entry"),
    "S36 entry is a number": (crafted({"a": 7}, DATA), "broken header entry"),
    "S36 too many dimensions": (crafted({"a": {**ENTRY, "shape": [1] * 40 + [2]}}, DATA), "broken header entry"),
    "S37 empty name": (crafted({"": ENTRY}, DATA), "which no model has"),
    "S38 path as a name": (crafted({"../../x": ENTRY}, DATA), "not to be trusted"),
    "S38 NUL in a name": (crafted({"a\0b": ENTRY}, DATA), "not to be trusted"),
    "S39 bytes behind the data": (SOUND + zipped("x"), "behind its last tensor"),
    "S42 NULs behind the header": (crafted(json.dumps({"a": ENTRY}).encode() + b"\0" * 8, DATA), "broken header"),
    "S43 100,000 brackets": (crafted(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "broken header"),
    "S43 100,000 objects": (crafted(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "broken header"),
    "S43 a number of a million digits": (crafted(b'{"a":' + b"9" * 1_000_000 + b"}"), "broken header"),
    "S43 NaN": (crafted(b'{"a": NaN}'), "NaN is no JSON"),
    "S44 zip": (zipped("lora.safetensors"), "is a zip archive"),
    "S45 zipped pickle": (zipped("archive/data.pkl"), "PyTorch pickle"),
    "S45 pickle": (pickle.dumps({"weight": list(range(100))}, 2), "PyTorch pickle"),
    "S46 tar": (tarred(), "tar archive"),
    "S47 git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git-lfs pointer"),
    "S48 four bits that fill no byte": (crafted({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, b"0"), "does not fill its bytes"),
    "S49 a header over the limit": (crafted({"__metadata__": {"a": "x" * (17 * 2**20)}, "a": ENTRY}, DATA), "strip its metadata"),
    "S49 100,001 tensors": (crafted({f"t{i}": {"data_offsets": 0} for i in range(100_001)}), "more than 100000 tensors"),
    "empty": (b"", "is empty"),
    "web page": (b"<!DOCTYPE html><html><head><title>Log in</title></head></html>", "web page"),
    "error message": (b'{"error": "Unauthorized", "message": "log in first"}', "JSON text"),
    "GGUF": (b"GGUF\x03\0\0\0" + b"\0" * 64, "GGUF file"),
    "picture": (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "PNG picture"),
    "words": (b"Please see the readme for the download link of this file.", "text file"),
    "noise": (bytes(range(7, 250)), "not a .safetensors file"),
}


@pytest.mark.parametrize(("content", "says"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_sound_file_is_refused_in_one_line_that_says_why(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "some.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        container.read_header(path)
    assert says in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("some.safetensors: ") and len(str(caught.value)) < 400


ACCEPTED = {
    "sound": SOUND,
    "S31 a scalar": crafted({"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, b"0" * 4),
    "S35 more fields": crafted({"a": {**ENTRY, "more": [1]}}, DATA),
    "S41 spaces behind the header": crafted(json.dumps({"a": ENTRY}).encode() + b" " * 9, DATA),
    "v-prediction marker": crafted({"a": ENTRY, "v_pred": {"dtype": "F32", "shape": [0], "data_offsets": [8, 8]}}, DATA),
    "no metadata": crafted({"__metadata__": None, "a": ENTRY}, DATA),
    "starts like a pickle": crafted(json.dumps({"a": ENTRY}).encode().ljust(0x280), DATA),
}


@pytest.mark.parametrize("content", ACCEPTED.values(), ids=ACCEPTED)
def test_what_is_sound_is_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    header = container.read_header(tmp_path / "f")
    assert header == container.parse_header("f", content)
    assert "a" in header.shapes and header.start + max(end for _, end in header.offsets.values()) == len(content)


def test_a_header_tells_shapes_dtypes_offsets_and_metadata() -> None:
    header = container.parse_header("f", SOUND)
    assert header.shapes == {"b": (2, 3), "a": (4,), "alpha": ()} and header.dtypes["a"] == "F16" and header.metadata == {"n": "1"}
    begin, end = header.offsets["b"]
    assert numpy.frombuffer(SOUND[header.start + begin : header.start + end], numpy.float32).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="No such file"):
        container.read_header(tmp_path / "none.safetensors")
    with pytest.raises(FormatError, match="directory"):
        container.read_header(tmp_path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    """It would leave a file behind if it were."""
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(canary),)

    for name in ("a.safetensors", "b.Safetensors", "c.ckpt", "d"):
        (tmp_path / name).write_bytes(pickle.dumps(Hostile()))
        with pytest.raises(FormatError, match="pickle file"):
            container.read_header(tmp_path / name)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("dtype", "size", "bad", "good"),
    [
        ("F16", 2, (0x7C00, 0xFC00, 0x7E01), (0x7BFF, 0x0001, 0x8000)),
        ("BF16", 2, (0x7F80, 0xFFC0), (0x7F7F, 0x3F80)),
        ("F32", 4, (0x7F800000, 0xFFC00000), (0x7F7FFFFF, 0x3F800000)),
        ("F64", 8, (0x7FF << 52, 0xFFF8 << 48), (0x3FF << 52,)),
        ("F8_E4M3", 1, (0x7F, 0xFF), (0x7E, 0x78)),
        ("F8_E5M2", 1, (0x7C, 0xFF), (0x7B,)),
        ("I32", 4, (), (0x7F800000,)),
    ],
)
def test_numbers_that_are_none_are_found_in_every_format(tmp_path: Path, dtype: str, size: int, bad: tuple[int, ...], good: tuple[int, ...]) -> None:
    for number, expected in [*((n, ("x",)) for n in bad), *((n, ()) for n in good)]:
        one = {"dtype": dtype, "shape": [3], "data_offsets": [0, 3 * size]}
        other = {"dtype": dtype, "shape": [3], "data_offsets": [3 * size, 6 * size]}
        (tmp_path / "f").write_bytes(crafted({"ok": one, "x": other}, b"\0" * 5 * size + number.to_bytes(size, "little")))
        assert container.nonfinite(tmp_path / "f") == expected, hex(number)


# The kernel's own peak of the process in kB. getrusage's figure is handed down by the parent, so it cannot tell.
PEAK = """
import sys
from pathlib import Path
def peak():
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1])
"""


def test_a_sparse_file_of_10_gb_is_looked_into_in_a_fraction_of_its_size(tmp_path: Path) -> None:
    """In a process of its own, whose memory tells what was needed for it."""
    n, each = 40, 2**28
    names = [f"lora_unet_single_blocks_{i}_linear1.lora_down.weight" for i in range(n)]
    header = {name: {"dtype": "F16", "shape": [each // 4096 // 2, 4096], "data_offsets": [i * each, (i + 1) * each]} for i, name in enumerate(names)}
    raw = crafted(header)
    path = tmp_path / "large.safetensors"
    path.write_bytes(raw)
    os.truncate(path, len(raw) + n * each)
    assert path.stat().st_size > 10 * 2**30 and path.stat().st_blocks * 512 < 2**20
    code = (
        PEAK
        + """
from studio import container
from studio.lora.formats import identity
before = peak()
header = container.read_header(Path(sys.argv[1]))
print(identity.identify(header.shapes, header.metadata).family, peak() - before)
"""
    )
    found = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60, check=True).stdout.split()
    assert int(found[-1]) < 20_000, f"{found[-1]} kB were needed"


@pytest.mark.parametrize("kind", ["lists", "names"])
def test_a_hostile_header_of_the_largest_size_costs_less_than_500_mb(tmp_path: Path, kind: str) -> None:
    """Empty lists, three bytes each in the file and sixty in memory; and names, of which every one is new."""
    lists = b'{"a":[' + b"[]," * (container.HEADER_LIMIT // 3 - 10) + b"[]]}"
    names = b'{"a":{' + b",".join(b'"%x":1' % i for i in range(container.HEADER_LIMIT // 10)) + b"}}"
    raw = {"lists": lists, "names": names}[kind]
    assert 0.8 * container.HEADER_LIMIT < len(raw) <= container.HEADER_LIMIT
    (tmp_path / "f").write_bytes(struct.pack("<Q", len(raw)) + raw + DATA)
    code = (
        PEAK
        + """
from studio import container
from studio.errors import FormatError
try:
    container.read_header(Path(sys.argv[1]))
except FormatError as error:
    print("broken header entry" in str(error), peak())
"""
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path / "f")], capture_output=True, text=True, timeout=60, check=True).stdout.split()
    assert found[0] == "True" and int(found[1]) < 500_000, found
