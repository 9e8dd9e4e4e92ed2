"""Captions in text files beside pictures: `cat.png.txt`, else `cat.txt`, else `cat.caption`.

Pictures that share a stem share that caption. Lines of a caption are joined by one space.
"""

import codecs
import unicodedata
from collections.abc import Mapping
from pathlib import PurePath
from typing import TypeVar

from studio.data.decoding import PictureError

CAPTION_SUFFIXES = (".txt", ".caption")
MAX_CAPTION_BYTES = 64 * 2**10

T = TypeVar("T")


def caption_lines(content: bytes) -> list[str]:
    """The lines of a caption file that hold something, each as one text."""
    return [line for row in _visible(_text(content)).splitlines() if (line := " ".join(row.split()))]


def decode_caption(content: bytes) -> str:
    """Caption text: UTF-8, UTF-16 if it says so by its mark, else Latin-1 (cp1252); control characters removed, one line.

    Raises PictureError if it is too long.
    """
    return " ".join(_visible(_text(content)).split())


def _text(content: bytes) -> str:
    if len(content) > MAX_CAPTION_BYTES:
        raise PictureError("caption_too_long", f"caption of {len(content):,} bytes is over the limit of {MAX_CAPTION_BYTES:,}")
    return decode_text(content)


def decode_text(content: bytes) -> str:
    """UTF-8, UTF-16 if it says so by its mark, else Latin-1 (cp1252), as people's text files come."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _visible(text: str) -> str:
    return "".join(c for c in text if c.isspace() or unicodedata.category(c) != "Cc")


def caption_files(files: Mapping[str, T]) -> dict[str, T]:
    """Folded name without caption suffix -> caption file; `.txt` wins over `.caption`."""
    found: dict[str, T] = {}
    for suffix in reversed(CAPTION_SUFFIXES):
        for name, path in sorted(files.items()):
            if name.lower().endswith(suffix):
                found[fold(name[: -len(suffix)])] = path
    return found


def caption_of(name: str, captions: Mapping[str, T]) -> T | None:
    """The caption file that belongs to a picture's name, by the rule at the top of this file."""
    return captions.get(fold(name)) or captions.get(fold(PurePath(name).stem))


def numbered_captions(name: str, captions: Mapping[str, T]) -> list[T]:
    """Further captions of a picture: `cat.1.txt`, `cat.2.txt` and so on beside `cat.png`, up to the first number that is missing."""
    found: list[T] = []
    while (more := captions.get(fold(f"{PurePath(name).stem}.{len(found) + 1}"))) is not None:
        found.append(more)
    return found


def fold(name: str) -> str:
    """One form for names that people and file systems hold to be the same."""
    return unicodedata.normalize("NFC", name).casefold()
