"""Generated pictures: newest first, deleting with undo, settings of any picture recalled."""

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from studio.config import GenerateConfig, LoraWeight, build
from studio.errors import NotFound
from studio.library import inputs, pictures, trash
from studio.library.database import Database
from studio.library.layout import Layout
from studio.library.models import AdapterRow, ImageRow
from studio.workspace.live import with_step
from studio.workspace.records import ImageRecord, RecallRecord
from studio.workspace.thumbnails import thumbnail

PAGE = 60


class Gallery:
    """Use cases around generated pictures."""

    def __init__(self, db: Database, layout: Layout) -> None:
        self._db = db
        self._layout = layout

    def list(self, before: str | None = None, limit: int = PAGE, job: str | None = None) -> list[ImageRecord]:
        """Newest first. `before`: the last id of the page before. `job`: only pictures of that job."""
        statement = select(ImageRow).order_by(ImageRow.created.desc(), ImageRow.id.desc()).limit(limit)
        if job:
            statement = statement.where(ImageRow.job == job)
        with self._db.read() as session:
            if before:
                last = _row(session, before)
                statement = statement.where(or_(ImageRow.created < last.created, (ImageRow.created == last.created) & (ImageRow.id < last.id)))
            return [_record(row) for row in session.scalars(statement)]

    def show(self, id: str) -> ImageRecord:
        with self._db.read() as session:
            return _record(_row(session, id))

    def path(self, id: str) -> Path:
        with self._db.read() as session:
            return pictures.file_of(self._layout, _row(session, id))

    def thumbnail(self, id: str, side: int = 256) -> Path:
        return thumbnail(self._layout, self.path(id), side)

    def remove(self, id: str) -> str:
        """Delete a picture; the token restores it within 30 days."""
        with self._db.read() as session:
            row = _row(session, id)
        return trash.throw(self._db, self._layout, "image", row, pictures.file_of(self._layout, row))

    def restore(self, token: str) -> ImageRecord:
        """Undo `remove`."""
        return self.show(trash.restore(self._db, self._layout, token, "image"))

    def recall(self, source: str | Path | bytes) -> GenerateConfig:
        """The settings that made a picture, see `recalled`."""
        return build(GenerateConfig, self.recalled(source).settings)

    def recalled(self, source: str | Path | bytes) -> RecallRecord:
        """The settings of a picture: a gallery id, a picture file, or its bytes. Raises InputError if it carries none.

        LoRAs are known by their hash, whatever they are called here; one that is missing or another file is named, never replaced.
        """
        from studio.generation import files

        if isinstance(source, str):
            try:
                source = self.path(source)
            except NotFound:
                source = Path(source).expanduser()
        found = files.load(source)
        rows, troubles, changed = [], [], []
        with self._db.read() as session:
            for row in found.config.loras:
                runs = with_step(session, self._layout, row.name)
                here, trouble = (row, _one_of(runs, row.name)) if runs else _as_here(session, row, found.hashes.get(row.name, ""))
                rows.append(here)
                if trouble:
                    troubles.append(trouble)
                    changed.append(here.name)
        for name in ("init_image", "mask"):
            start = getattr(found.config, name)
            if start and inputs.find(self._layout, start) is None:
                troubles.append(f"{name} {start} is not kept here; the drawing needs it to come out the same")
        settings = found.config.model_copy(update={"loras": tuple(rows)}).model_dump(mode="json")
        return RecallRecord(settings=settings, troubles=tuple(troubles), changed=tuple(changed))


def _one_of(runs: Sequence[str], name: str) -> str:
    """What is wrong with a row that is a checkpoint: the picture says no more than its name."""
    return "" if len(runs) == 1 else f"{len(runs)} runs are called {name.rpartition('@')[0]} and have that step; see which of them it was"


def _as_here(session: Session, row: LoraWeight, hash: str) -> tuple[LoraWeight, str]:
    """The row under the name that the library has for that very file, and what is wrong where it has none."""
    named = session.scalar(select(AdapterRow).where(AdapterRow.name == row.name).limit(1))
    if not hash:
        return row, "" if named else f"LoRA {row.name} is not in the library, and the picture does not say which file it was"
    known = or_(AdapterRow.autov3.startswith(hash.lower()), AdapterRow.sha256.startswith(hash.lower()))
    if named is not None and (named.autov3.startswith(hash.lower()) or named.sha256.startswith(hash.lower())):
        return row, ""
    same = session.scalar(select(AdapterRow).where(known).limit(1))
    if same is not None:
        return row.model_copy(update={"name": same.name}), ""
    if named is None:
        return row, f"LoRA {row.name} (hash {hash}) is not in the library; add its file"
    return row, f"LoRA {row.name} is another file here (hash {named.autov3[: len(hash)]}) than the picture was drawn with (hash {hash})"


def _record(row: ImageRow) -> ImageRecord:
    values = row.values()
    return ImageRecord(**{name: values[name] for name in ImageRecord.model_fields})


def _row(session: Session, id: str) -> ImageRow:
    row = session.get(ImageRow, id)
    if row is None:
        raise NotFound(f"no picture {id!r} in the gallery")
    return row
