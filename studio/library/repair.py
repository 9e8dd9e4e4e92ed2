"""A damaged SQLite file is set aside, so that a new one can be filled from the folders, which are the truth."""

import logging
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from filelock import FileLock, Timeout

from studio.errors import StudioError

logger = logging.getLogger(__name__)


def set_aside(database: Path, lock: Path) -> str:
    """One sentence if the file was damaged and moved away, else nothing. Raises StudioError if another process works on it."""
    if not database.is_file() or _sound(database):
        return ""
    try:
        with FileLock(lock).acquire(blocking=False):
            kept = database.with_name(f"{database.name}.damaged-{int(time.time())}")
            for end in ("-wal", "-shm"):
                if (old := Path(f"{database}{end}")).exists():
                    old.replace(f"{kept}{end}")
            database.replace(kept)
    except Timeout:
        raise StudioError(f"{database} is damaged and another studio works on it; stop that one and start again") from None
    told = f"the database was damaged and is rebuilt from the folders; jobs, sets and LoRAs are kept, the damaged file is {kept.name}"
    logger.warning(told)
    return told


def _sound(database: Path) -> bool:
    try:
        with closing(sqlite3.connect(database, timeout=5)) as db:
            return db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
    except sqlite3.OperationalError:
        return True  # busy or not readable, which opening it tells better
    except sqlite3.DatabaseError:
        return False
