"""Folders of pictures with captions beside. Torch-free."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from studio.data.captions import MAX_CAPTION_BYTES, caption_files, caption_lines, caption_of, decode_caption, numbered_captions
from studio.data.decoding import PictureError, check_size, decode, named, open_picture, read_bytes, upright_size
from studio.data.masks import is_mask_name, mask_files, mask_of
from studio.errors import ImageError

__all__ = ["ImageSet", "Picture", "PictureError", "decode", "read_set"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")


@dataclass(frozen=True)
class Picture:
    """A picture of a set; width and height as seen upright, sha256 of the file's bytes. `captions`: one text a line or numbered file, if there are several."""

    name: str
    path: Path
    width: int
    height: int
    sha256: str
    caption: str
    captions: tuple[str, ...] = ()
    mask: Path | None = None
    mask_sha256: str = ""


@dataclass(frozen=True)
class Companion:
    """Another set of the same run: how often an epoch shows each of its pictures, and whether it only keeps the base as it was."""

    images: "ImageSet"
    repeats: int = 1
    regular: bool = False


@dataclass(frozen=True)
class ImageSet:
    """A folder of pictures with captions. `trigger` and the words about it come from set.json, if there is one."""

    name: str
    folder: Path
    trigger: str
    pictures: tuple[Picture, ...]
    title: str = ""
    kind: str = ""
    licence: str = ""
    description: str = ""
    companions: tuple[Companion, ...] = ()


def read_set(folder: Path) -> ImageSet:
    """The pictures directly in a folder, in name order, with captions. Headers are checked here, pixels when decoded.

    Hidden files, links out of the folder and anything that is no regular file are passed over. Raises ImageError if the
    folder is absent or empty, or holds a picture by suffix that is none by content.
    """
    if not folder.is_dir():
        raise ImageError(f"image set {str(folder)!r} is not a folder; name a folder of pictures or a set in the studio")
    try:
        files = {path.name: path for path in regular_files(folder)}
    except OSError as error:
        raise ImageError(f"image set {folder.name}: cannot be read ({error.strerror})") from error
    about = read_about(folder)
    captions = caption_files(files)
    seen = [(name, path) for name, path in sorted(files.items()) if not is_mask_name(name) and (is_picture_name(name) or _unnamed(path))]
    masks = mask_files(folder, files)
    pictures = tuple(_read_picture(path, captions, mask_of(name, masks)) for name, path in seen)
    if not pictures:
        nested = any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir())
        way_out = "import the folder to take its sub-folders in" if nested else f"it takes {', '.join(SUFFIXES)}"
        raise ImageError(f"image set {folder.name}: there is no picture in it; {way_out}")
    return replace(ImageSet(folder.name, folder, "", pictures), **about)


def regular_files(folder: Path) -> Iterator[Path]:
    """Visible regular files directly in the folder; links only if they stay inside it."""
    home = folder.resolve()
    for entry in os.scandir(folder):
        path = Path(entry.path)
        if entry.name.startswith(".") or not entry.is_file():
            continue
        if not entry.is_symlink() or path.resolve().is_relative_to(home):
            yield path


def is_picture_name(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def upright_size_of(path: Path) -> tuple[int, int]:
    """Width and height of a picture as seen. Raises PictureError."""
    try:
        status = path.stat()
    except OSError as error:
        raise PictureError("unreadable", f"cannot be read ({error.strerror})") from error
    return _measure(path, status.st_size, status.st_mtime_ns)[:2]


def read_about(folder: Path) -> dict[str, str]:
    """What set.json says of a set: title, trigger, kind, licence, description. Empty without one."""
    path = folder / "set.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes()[:MAX_CAPTION_BYTES])
    except (OSError, ValueError, RecursionError) as error:
        raise ImageError(f"{folder.name}/set.json cannot be read ({type(error).__name__}); mend or remove it") from error
    return about_fields(found)


def about_fields(found: Any) -> dict[str, str]:
    """The known fields of a parsed set.json, texts only."""
    known = ("title", "trigger", "kind", "licence", "description")
    return {key: found[key] for key in known if isinstance(found.get(key), str)} if isinstance(found, dict) else {}


def _read_picture(path: Path, captions: Mapping[str, Path], mask: Path | None) -> Picture:
    try:
        status = path.stat()
        width, height, sha256 = _measure(path, status.st_size, status.st_mtime_ns)
        beside = caption_of(path.name, captions)
        text = read_bytes(beside) if beside else b""
        numbered = [decode_caption(read_bytes(more)) for more in numbered_captions(path.name, captions)]
        caption, several = decode_caption(text), [*caption_lines(text), *numbered]
        mask_sha256 = hashlib.sha256(read_bytes(mask)).hexdigest() if mask else ""
    except OSError as error:
        raise ImageError(f"{path.name}: cannot be read ({error.strerror})") from error
    except PictureError as error:
        raise named(error, path) from error.__cause__
    return Picture(path.name, path, width, height, sha256, caption, tuple(several) if len(several) > 1 else (), mask, mask_sha256)


@lru_cache(maxsize=50_000)
def _measure(path: Path, size: int, changed: int) -> tuple[int, int, str]:
    """Upright width, height and sha256; size and time of change only key the cache."""
    content = read_bytes(path)
    image = open_picture(content)
    check_size(*image.size)
    if image.format == "PNG" and b"eXIf" in content and "exif" not in image.info:
        decode(content)  # PNG may carry its orientation behind the pixels
        image.load()
    width, height = upright_size(image)
    return width, height, hashlib.sha256(content).hexdigest()


def _unnamed(path: Path) -> bool:
    """Whether a file without a suffix starts like a picture."""
    if path.suffix:
        return False
    with path.open("rb") as file:
        start = file.read(16)
    return start.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")) or start[8:12] == b"WEBP"
