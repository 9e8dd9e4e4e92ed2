"""Small files that must be whole or absent, whatever happens in between."""

import os
import secrets
import shutil
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: after a crash the old file or the new one is there, never half of one."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def place(source: Path, target: Path) -> None:
    """`source` also at `target`: a hard link where the file system can, else a copy; whole or absent."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        try:
            os.link(source, part)
        except OSError:
            shutil.copy2(source, part)
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)  # a rename between two links of one file leaves both
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
