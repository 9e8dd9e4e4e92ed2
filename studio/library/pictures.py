"""Generated pictures: kept in images/YYYY-MM-DD/, known to the gallery by job and number."""

import time
from pathlib import Path

from studio.events import Image
from studio.library.database import Database
from studio.library.files import place
from studio.library.layout import Layout
from studio.library.models import ImageRow


def register(db: Database, layout: Layout, job: str, segment: int, event: Image) -> ImageRow:
    """The gallery row of a finished picture; doing it twice changes nothing."""
    id = f"{job}-{segment}-{event.index:04d}"
    with db.read() as session:
        known = session.get(ImageRow, id)
    if known is not None:
        return known
    from PIL import Image as Pillow

    source = layout.jobs / job / event.path
    day = time.strftime("%Y-%m-%d", time.localtime(event.time))
    target = layout.images / day / f"{id}{source.suffix}"
    with Pillow.open(source, formats=("PNG", "JPEG", "WEBP")) as picture:
        width, height = picture.size
    place(source, target)
    row = ImageRow(
        id=id,
        job=job,
        path=target.relative_to(layout.root).as_posix(),
        source=event.path,
        width=width,
        height=height,
        seed=event.seed,
        prompt=str(event.settings.get("prompt", "")),
        created=event.time,
        settings=event.settings,
    )
    with db.write() as session:
        session.add(row)
    return row


def file_of(layout: Layout, row: ImageRow) -> Path:
    return layout.root / row.path
