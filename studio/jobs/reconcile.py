"""Making rows agree with folders when a process begins to dispatch; the folder is the truth."""

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from studio.errors import StudioError, Unavailable
from studio.jobs import leftovers
from studio.jobs.folder import JobFolder, Manifest
from studio.library import adapters, trash
from studio.library.database import Database
from studio.library.layout import Layout
from studio.library.models import AdapterRow, ImageRow, JobRow, SetRow

logger = logging.getLogger(__name__)


def reconcile(db: Database, layout: Layout) -> None:
    """Rows for folders without one, no rows without files, no leftovers of crashes. Others may submit and dispatch meanwhile."""
    leftovers.collect(layout)
    trash.settle(db, layout)
    _jobs(db, layout)
    _adapters(db, layout)
    _sets(db, layout)
    _images(db, layout)


def row_of(manifest: Manifest) -> JobRow:
    """A queued job's row, as its folder tells it."""
    now = time.time()
    return JobRow(
        id=manifest.id,
        kind=manifest.kind,
        name=manifest.name,
        state="queued",
        priority=manifest.priority,
        created=manifest.created,
        queued=manifest.segment.submitted,
        updated=now,
        key=manifest.key or None,
        segment=manifest.segment.number,
        offset=manifest.segment.offset,
        base=str(manifest.base.get("name", "")),
        family=str(manifest.base.get("family", "")),
        config=manifest.config,
        settings=manifest.settings,
        uses=manifest.uses,
        total=int(manifest.settings.get("steps") or 0) if manifest.kind == "train" else 0,
    )


def _jobs(db: Database, layout: Layout) -> None:
    with db.read() as session:
        known = {row[0]: row[1] for row in session.execute(select(JobRow.id, JobRow.state))}
    present = set()
    for path in _folders(layout.jobs):
        folder = JobFolder(path)
        try:
            manifest = folder.manifest()
        except (OSError, ValidationError) as error:
            logger.warning("%s holds no readable job.json: %s", path, error)
            continue
        present.add(manifest.id)
        claim = folder.claim()
        begun = claim is not None or folder.events_file.stat().st_size > manifest.segment.offset
        if manifest.id not in known:
            row = row_of(manifest)
            if begun or len(manifest.segments) > 1:  # the dispatcher reads it from its first word on
                row.state, row.segment, row.offset, row.node = "running", 1, 0, claim.node if claim else ""
            with contextlib.suppress(IntegrityError), db.write() as session:  # its submitter was about to add it
                session.add(row)
        elif known[manifest.id] == "queued" and begun:
            taken = {"state": "running", "node": claim.node if claim else "", "device": claim.device if claim else ""}
            with db.write() as session:
                session.execute(update(JobRow).where(JobRow.id == manifest.id, JobRow.state == "queued").values(**taken, updated=time.time()))
    _drop(db, JobRow, set(known) - present)


def _adapters(db: Database, layout: Layout) -> None:
    with db.read() as session:
        rows = {row.id: row for row in session.scalars(select(AdapterRow))}
    _drop(db, AdapterRow, {id for id, row in rows.items() if not adapters.file_of(layout, row).is_file()})
    for path in _folders(layout.adapters):
        file = next(path.glob("*.safetensors"), None)
        if path.name in rows:
            continue
        if file is None:
            shutil.rmtree(path)
            continue
        try:
            adapters.register(db, layout, path.name, file, {"run": path.name.rpartition("-")[0], "created": file.stat().st_mtime})
        except Unavailable:
            raise  # whoever wants to dispatch tries again
        except StudioError as error:
            logger.warning("%s is not taken into the library: %s", file, error)


def _sets(db: Database, layout: Layout) -> None:
    from studio.library import sets

    with db.read() as session:
        known = set(session.scalars(select(SetRow.id)))
    present = {path.name for path in _folders(layout.sets)}
    _drop(db, SetRow, known - present)
    for id in present - known:
        sets.adopt(db, layout, id)


def _images(db: Database, layout: Layout) -> None:
    with db.read() as session:
        rows = [(row[0], row[1]) for row in session.execute(select(ImageRow.id, ImageRow.path))]
    _drop(db, ImageRow, {id for id, path in rows if not (layout.root / path).is_file()})


def _drop(db: Database, table: type[JobRow] | type[AdapterRow] | type[SetRow] | type[ImageRow], ids: set[str]) -> None:
    if not ids:
        return
    logger.warning("%d rows of %s have no files any more and are removed", len(ids), table.__tablename__)
    with db.write() as session:
        for id in ids:
            row = session.get(table, id)
            if row is not None:
                session.delete(row)


def _folders(parent: Path) -> Iterator[Path]:
    """Folders in a folder, without the hidden ones that are still being made."""
    for path in sorted(parent.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            yield path
