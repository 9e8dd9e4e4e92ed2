"""Deleting that can be undone: files move to trash/<token>/ with their row, and come back together."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from studio.errors import InputError, NotFound, Unavailable
from studio.library.database import Database
from studio.library.files import write_whole
from studio.library.ids import new_id
from studio.library.layout import Layout, checked_id
from studio.library.models import AdapterRow, BaseRow, ImageRow, JobRow, SetRow, Table

KEEP_SECONDS = 30 * 24 * 3600.0
TABLES: dict[str, type[Table]] = {"job": JobRow, "set": SetRow, "adapter": AdapterRow, "image": ImageRow, "base": BaseRow}


def throw(db: Database, layout: Layout, kind: str, row: Table, path: Path | None) -> str:
    """Move a row and its file or folder into the trash; the token brings them back.

    The note is written first, the row deleted last: `settle` finishes or forgets a removal that a crash cut short.
    """
    token = new_id()
    home = layout.trash / token
    home.mkdir(parents=True)
    where = path.relative_to(layout.root).as_posix() if path else ""
    note = {"kind": kind, "key": _key(row), "values": row.values(), "path": where, "removed": time.time()}
    write_whole(home / "item.json", json.dumps(note).encode())
    if path is not None and path.exists():
        os.replace(path, home / "content")
    try:
        with db.write() as session:
            stored = session.get(TABLES[kind], note["key"])
            if stored is not None:
                session.delete(stored)
    except Unavailable:
        if _has(db, kind, note["key"]) is False:
            return token  # only the answer was lost
        if path is not None and (home / "content").exists():
            os.replace(home / "content", path)
        shutil.rmtree(home)
        raise
    return token


def restore(db: Database, layout: Layout, token: str, kind: str, rename: Callable[[Session, dict[str, Any]], None] | None = None) -> str:
    """Put an item back and return its id. `rename` may change the row's values where its name was taken meanwhile."""
    home = layout.trash / checked_id(token, "deleted item")
    if not (home / "item.json").is_file():
        raise NotFound(f"no deleted item {token!r}; deleted things are kept for 30 days")
    note = json.loads((home / "item.json").read_text())
    if note["kind"] != kind:
        raise InputError(f"{token!r} is a deleted {note['kind']}, not a {kind}")
    target = layout.root / note["path"] if note["path"] else None
    if target is not None and target.exists():
        raise InputError(f"{note['path']} exists again; remove it first")
    try:
        with db.write() as session:
            values = note["values"]
            if rename is not None:
                rename(session, values)
            session.add(TABLES[kind](**values))
            session.flush()  # a name that is taken must be known before the file moves
            if target is not None and (home / "content").exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(home / "content", target)
    except Unavailable:
        if not _has(db, kind, note["key"]):
            if target is not None and target.exists():
                os.replace(target, home / "content")
            raise
    shutil.rmtree(home)
    return str(note["key"])


def throw_files(layout: Layout, owner: str, paths: list[Path]) -> str:
    """Move some files of a set into the trash; the token brings them back to their places."""
    token = new_id()
    home = layout.trash / token
    (home / "content").mkdir(parents=True)
    note = {"kind": "files", "key": owner, "paths": [path.relative_to(layout.root).as_posix() for path in paths], "removed": time.time()}
    write_whole(home / "item.json", json.dumps(note).encode())
    for path in paths:
        os.replace(path, home / "content" / path.name)
    return token


def restore_files(layout: Layout, token: str) -> str | None:
    """Put the files of `throw_files` back and return their owner; None if the token is of another kind."""
    home = layout.trash / checked_id(token, "deleted item")
    note = json.loads((home / "item.json").read_text()) if (home / "item.json").is_file() else {}
    if note.get("kind") != "files":
        return None
    targets = [layout.root / path for path in note["paths"]]
    gone = next((target.parent for target in targets if not target.parent.is_dir()), None)
    if gone is not None:
        raise InputError("the image set of these pictures is deleted too; restore it first")
    for target in targets:
        content = home / "content" / target.name
        if content.exists() and target.exists():
            raise InputError(f"{target.name} exists again; remove it first")
    for target in targets:
        if (home / "content" / target.name).exists():
            os.replace(home / "content" / target.name, target)
    shutil.rmtree(home)
    return str(note["key"])


def settle(db: Database, layout: Layout, keep_seconds: float = KEEP_SECONDS) -> None:
    """Finish removals that a crash interrupted, and delete for good what has been in the trash long enough."""
    for home in layout.trash.iterdir():
        if not (home / "item.json").is_file():
            shutil.rmtree(home, ignore_errors=True)
            continue
        note = json.loads((home / "item.json").read_text())
        if note["kind"] == "files":
            if time.time() - note["removed"] > keep_seconds:
                shutil.rmtree(home)
            continue
        moved = (home / "content").exists() or not note["path"]
        if time.time() - note["removed"] > keep_seconds:
            _purge(layout, home, note)
        elif not moved and (layout.root / note["path"]).exists():
            shutil.rmtree(home)
        else:
            with db.write() as session:
                stored = session.get(TABLES[note["kind"]], note["key"])
                if stored is not None:
                    session.delete(stored)


def _purge(layout: Layout, home: Path, note: dict[str, Any]) -> None:
    if note["kind"] == "image":  # the job's own link to the picture holds the same space
        values = note["values"]
        (layout.jobs / values["job"] / values["source"]).unlink(missing_ok=True)
    shutil.rmtree(home)


def _has(db: Database, kind: str, key: str) -> bool | None:
    """Whether the row is there; None if the database does not say."""
    try:
        with db.read() as session:
            return session.get(TABLES[kind], key) is not None
    except Unavailable:
        return None


def _key(row: Table) -> str:
    return str(row.values()[str(row.__mapper__.primary_key[0].key)])
