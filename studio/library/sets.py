"""Rows of image sets, counted from their folders; pictures, captions and set.json are the truth."""

import json
import time
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from studio.data.captions import caption_files, caption_of
from studio.data.images import is_picture_name, read_about, regular_files
from studio.data.masks import is_mask_name
from studio.errors import ImageError
from studio.library.database import Database
from studio.library.files import write_whole
from studio.library.layout import Layout
from studio.library.models import SetRow


def count(folder: Path) -> dict[str, Any]:
    """Pictures, captioned ones and the first picture's name, by file names alone."""
    files = {path.name: path for path in regular_files(folder)}
    pictures = sorted(name for name in files if is_picture_name(name) and not is_mask_name(name))
    captions = caption_files(files)
    captioned = sum(caption_of(name, captions) is not None for name in pictures)
    return {"pictures": len(pictures), "captioned": captioned, "cover": pictures[0] if pictures else ""}


def known(db: Database, id: str) -> bool:
    with db.read() as session:
        return session.get(SetRow, id) is not None


def recount(db: Database, layout: Layout, id: str) -> None:
    """Bring a row up to its folder."""
    with db.write() as session:
        row = session.get_one(SetRow, id)
        for column, value in count(layout.sets / id).items():
            setattr(row, column, value)
        row.updated = time.time()


def adopt(db: Database, layout: Layout, id: str) -> SetRow:
    """A row for a set folder that has none."""
    folder = layout.sets / id
    try:
        about = read_about(folder)
    except ImageError:
        about = {}  # a broken set.json costs the name, not the pictures
    created = folder.stat().st_mtime
    with db.write() as session:
        name = free_name(session, about.get("title") or id)
        row = SetRow(id=id, name=name, trigger=about.get("trigger", ""), created=created, updated=created, **count(folder))
        session.add(row)
    return row


def write_about(folder: Path, title: str, trigger: str) -> None:
    """Change title and trigger in set.json, keeping what else it says."""
    about = {**read_about(folder), "title": title, "trigger": trigger}
    write_whole(folder / "set.json", json.dumps(about, ensure_ascii=False, indent=1).encode())


def free_name(session: Session, wish: str) -> str:
    """`wish`, with a number behind it if another set is called so."""
    name, n = wish[:190], 1
    while session.scalar(select(SetRow.id).where(func.lower(SetRow.name) == name.lower())):
        n += 1
        name = f"{wish[:185]} {n}"
    return name
