"""Generated pictures: newest first, deleting with undo, settings of any picture recalled."""

from pathlib import Path

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from studio.config import GenerateConfig, LoraWeight, build
from studio.errors import NotFound
from studio.library import pictures, trash
from studio.library.database import Database
from studio.library.layout import Layout
from studio.library.models import AdapterRow, ImageRow
from studio.workspace.records import ImageRecord
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
        """The settings that made a picture: a gallery id, a picture file, or its bytes. Raises InputError if it carries none.

        LoRAs that are called otherwise here are found by their hash.
        """
        if isinstance(source, str):
            try:
                return build(GenerateConfig, self.show(source).settings)
            except NotFound:
                source = Path(source).expanduser()
        from studio.generation import files

        recalled = files.load(source)
        with self._db.read() as session:
            rows = [_as_here(session, row, recalled.hashes.get(row.name, "")) for row in recalled.config.loras]
        return recalled.config.model_copy(update={"loras": tuple(rows)})


def _as_here(session: Session, row: LoraWeight, hash: str) -> LoraWeight:
    """The row under the name that the library has for that file; as it is if the library has the name, or not the file."""
    if not hash or session.scalar(select(AdapterRow.id).where(AdapterRow.name == row.name)):
        return row
    name = session.scalar(select(AdapterRow.name).where(or_(AdapterRow.autov3.startswith(hash.lower()), AdapterRow.sha256.startswith(hash.lower()))).limit(1))
    return row.model_copy(update={"name": name}) if name else row


def _record(row: ImageRow) -> ImageRecord:
    values = row.values()
    return ImageRecord(**{name: values[name] for name in ImageRecord.model_fields})


def _row(session: Session, id: str) -> ImageRow:
    row = session.get(ImageRow, id)
    if row is None:
        raise NotFound(f"no picture {id!r} in the gallery")
    return row
