"""Small files that must be whole or absent, whatever happens in between."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from studio.errors import Unavailable


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


def refuse_full(error: BaseException, folder: Path) -> None:
    """Raise Unavailable, with the room that is left, if `error` says that the disk of `folder` or its quota is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(folder).free / 1e6
        raise Unavailable(f"the disk is full ({free:.0f} MB free); nothing was changed: free some space and do it again") from error


@contextlib.contextmanager
def or_nothing(*made: Path, room: Path) -> Iterator[None]:
    """What is made in this block is taken away again if it fails; a full disk is told as Unavailable. `room`: a folder on that disk."""
    try:
        yield
    except BaseException as error:
        for path in made:
            shutil.rmtree(path, ignore_errors=True)
        refuse_full(error, room)
        raise


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
