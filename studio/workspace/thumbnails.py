"""Small pictures for lists, made once and kept by content."""

import hashlib
import os
from pathlib import Path

from studio.library.layout import Layout

SIDES = (64, 96, 128, 192, 256, 384, 512, 768, 1024)


def thumbnail(layout: Layout, source: Path, side: int) -> Path:
    """A WebP whose longer side is at most the next offered size above `side`."""
    from studio.data.images import decode

    side = next((offered for offered in SIDES if offered >= side), SIDES[-1])
    stat = source.stat()
    key = hashlib.sha256(f"{source.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:32]
    target = layout.thumbnails / key[:2] / f"{key}-{side}.webp"
    if target.is_file():
        return target
    picture = decode(source)
    picture.thumbnail((side, side))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    picture.save(part, "WEBP", quality=82)
    os.replace(part, target)
    return target
