"""Zip files, opened without trust: nothing is unpacked to disk, every member is read in memory under limits."""

import lzma
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from studio.data.decoding import MAX_BYTES, PictureError, open_picture

MAX_ARCHIVE_BYTES = 2 * 2**30
MAX_UNPACKED_BYTES = 20 * 2**30
MAX_ENTRIES = 20_000
MAX_DEPTH = 8
MAX_RATIO = 200
RATIO_FREE_BYTES = 10 * 2**20
_CHUNK = 2**20
_NESTED = (".zip", ".rar", ".7z", ".tar", ".gz", ".tgz", ".bz2", ".xz")


@dataclass(frozen=True)
class Item:
    """One file to take in: its name for people, its path inside what it came in, and how to read it."""

    name: str
    inner: PurePosixPath
    home: str  # equal for files that lay in one folder
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Refusal:
    """A member that is not even read."""

    name: str
    code: str
    message: str


def is_archive(path: Path) -> bool:
    """Whether the file is a zip by its first bytes, or claims to be one by its name."""
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06") or path.suffix.lower() == ".zip"


def open_archive(path: Path) -> zipfile.ZipFile:
    """The zip, its directory checked. Raises PictureError if it is none, or too much."""
    if path.stat().st_size > MAX_ARCHIVE_BYTES:
        raise PictureError("too_many_bytes", "the zip is over the limit of 2 GiB; split it")
    try:
        archive = zipfile.ZipFile(path)
    except NotImplementedError as error:
        raise PictureError("method", "it is a zip of a later kind than is read; make the zip anew") from error
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise _no_zip(path) from error
    try:
        _check_directory(archive)
    except PictureError:
        archive.close()
        raise
    return archive


def expand(archive: zipfile.ZipFile, name: str, home: str) -> Iterator[Item | Refusal]:
    """Its files in order, folders left out; each read checks size, ratio and checksum. `home` must be the zip's alone."""
    for member in archive.infolist():
        if member.is_dir():
            continue
        shown = f"{name}/{member.filename}"
        problem = _problem(member)
        if problem:
            yield Refusal(shown, *problem)
        else:
            inner = PurePosixPath(member.filename)
            yield Item(shown, inner, f"{home}/{inner.parent}", _reader(archive, member))


def _check_directory(archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    if len(members) > MAX_ENTRIES:
        raise PictureError("too_many_entries", f"the zip has {len(members):,} entries, over the limit of {MAX_ENTRIES:,}; split it")
    if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
        raise PictureError("unpacks_too_big", "the zip unpacks to more than 20 GiB; split it")
    if not members:
        raise PictureError("no_images", "the zip is empty")
    starts = sorted((member.header_offset, member.compress_size) for member in members)
    ends = [start for start, _ in starts[1:]] + [archive.start_dir]
    if any(start + size + 30 > end for (start, size), end in zip(starts, ends, strict=True)):
        raise PictureError("overlapping", "entries of the zip overlap; it is damaged or made to do harm")


def _problem(member: zipfile.ZipInfo) -> tuple[str, str] | None:
    raw = member.orig_filename
    windows = PureWindowsPath(raw)
    if ".." in windows.parts or windows.drive or raw.startswith(("/", "\\")) or "\\" in raw:
        return "traversal", "its path leads out of the zip"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "link", "a link, not a file"
    if len(PurePosixPath(raw).parts) > MAX_DEPTH:
        return "depth", f"it lies more than {MAX_DEPTH} folders deep"
    if raw.lower().endswith(_NESTED):
        return "nested_archive", "an archive inside the zip is not opened; give it on its own"
    if member.flag_bits & 0x1:
        return "encrypted", "it is protected with a password; make a zip without one"
    if member.file_size > MAX_BYTES:
        return "too_many_bytes", f"it unpacks to {member.file_size / 2**20:,.0f} MiB, over the limit of {MAX_BYTES // 2**20} MiB"
    return None


def _reader(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Callable[[], bytes]:
    return lambda: _read(archive, member)


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    parts: list[bytes] = []
    total = 0
    try:
        with archive.open(member) as file:
            while chunk := file.read(_CHUNK):
                total += len(chunk)
                if total > MAX_BYTES or (total > RATIO_FREE_BYTES and total > MAX_RATIO * max(member.compress_size, 1)):
                    raise PictureError("ratio", f"it unpacks to over {MAX_RATIO} times its size, as harmful files do")
                parts.append(chunk)
    except RuntimeError as error:  # an unknown method, or one that this Python was built without
        raise PictureError("method", "it is packed in a way that is not read; make the zip anew") from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # bz2 raises one without a number for damage
            raise PictureError("unreadable", f"the zip cannot be read ({error.strerror})") from error
        raise PictureError("damaged", "it is damaged inside the zip; make the zip anew") from error
    return b"".join(parts)


def _no_zip(path: Path) -> PictureError:
    """Why a file that looked like a zip is none, by what its first bytes are."""
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(b"PK"):
        return PictureError("bad_zip", "the zip is damaged or cut off; copy or download it again")
    try:
        open_picture(start)
    except PictureError as error:
        if error.code in ("unsupported_format", "empty"):
            return PictureError("not_zip", str(error))
        if error.code == "web_page":
            return PictureError("not_zip", "this is a web page, not a zip file; download the zip itself")
    return PictureError("not_zip", "this is not a zip file")
