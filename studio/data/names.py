"""File names that every system, and everyone's eyes, can take."""

import re
import unicodedata
from collections.abc import Container
from pathlib import PurePosixPath

from studio.data.captions import fold

MAX_STEM_BYTES = 100
_RESERVED = {"con", "prn", "aux", "nul", *(f"{device}{n}" for device in ("com", "lpt") for n in range(1, 10))}


def safe_stem(name: str, taken: Container[str]) -> str:
    """A stem like the given file name's, free among the folded stems `taken`; letters of any script are kept."""
    base = unicodedata.normalize("NFC", PurePosixPath(name.replace("\\", "/")).name)
    stem = base[: -len(PurePosixPath(base).suffix) or None]
    # No dots: `cat.png.txt` must be the caption of cat.png and of no other picture.
    shown = "".join("_" if c in '<>:"/\\|?*.' else c for c in stem if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn"))
    short = _shorten(re.sub(r"^[\s_-]+|[\s_]+$", "", shown), MAX_STEM_BYTES) or "picture"
    if short.lower() in _RESERVED:
        short = f"_{short}"
    free, n = short, 1
    while fold(free) in taken:
        n += 1
        free = f"{_shorten(short, MAX_STEM_BYTES - 7)}-{n}"
    return free


def _shorten(text: str, n_bytes: int) -> str:
    return text.encode()[:n_bytes].decode(errors="ignore").rstrip()
