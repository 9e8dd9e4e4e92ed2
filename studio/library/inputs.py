"""Pictures that drawings start from: kept by their content, so that a recalled drawing starts from the very same one."""

import hashlib
import re
from pathlib import Path

from studio.data import decoding
from studio.library.files import write_whole
from studio.library.layout import Layout

DIGITS = 32  # of the content's sha256
_NAME = re.compile(rf"[0-9a-f]{{{DIGITS}}}\.[a-z0-9]{{2,5}}")


def keep(layout: Layout, path: Path) -> tuple[str, Path]:
    """The name and place of a copy of this picture. Raises ImageError if it is none that can be drawn from."""
    decoding.decode(path)
    content = decoding.read_bytes(path)
    kind = (decoding.open_picture(content).format or "png").lower()
    name = f"{hashlib.sha256(content).hexdigest()[:DIGITS]}.{'jpg' if kind in ('jpeg', 'mpo') else kind}"
    target = layout.inputs / name
    if not target.is_file():
        write_whole(target, content)
    return name, target


def find(layout: Layout, name: str) -> Path | None:
    """The kept picture of that name."""
    path = layout.inputs / name
    return path if _NAME.fullmatch(name) and path.is_file() else None
