"""Image sets: pictures in, captions, deleting with undo. Sample sets that ship with the studio are read-only."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from studio.data import imports
from studio.data.captions import caption_files, caption_of
from studio.data.images import ImageSet, read_about, read_set, regular_files
from studio.errors import ImageError, InputError, NotFound
from studio.library import sets as rows
from studio.library import trash
from studio.library.database import Database
from studio.library.files import or_nothing, write_whole
from studio.library.ids import new_id
from studio.library.layout import Layout, inside
from studio.library.models import SetRow
from studio.workspace.guards import not_in_use
from studio.workspace.records import ImportRecord, Outcome, PictureRecord, SetDetail, SetRecord
from studio.workspace.thumbnails import thumbnail

BUILTIN = Path(__file__).parents[2] / "assets" / "sets"
CAPTION_CHARACTERS = 20_000

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Resolved:
    """The image set of a run: id "" for a folder outside the studio and for sample sets."""

    id: str
    folder: Path
    trigger: str
    n: int


class Sets:
    """Use cases around image sets."""

    def __init__(self, db: Database, layout: Layout) -> None:
        self._db = db
        self._layout = layout

    def list(self) -> list[SetRecord]:
        """Newest first, then the sample sets."""
        with self._db.read() as session:
            own = [_record(row) for row in session.scalars(select(SetRow).order_by(SetRow.created.desc(), SetRow.id.desc()))]
        return own + [_builtin(folder) for folder in _builtins()]

    def show(self, ref: str) -> SetDetail:
        """A set with its pictures and captions, by id or name."""
        record, folder = self._find(ref)
        try:
            found = read_set(folder) if record.pictures else None
        except ImageError:
            self._recount(record)
            if self._find(ref)[0].pictures:
                raise
            found = None
        pictures = found.pictures if found else ()
        items = [PictureRecord(name=p.name, width=p.width, height=p.height, sha256=p.sha256, caption=p.caption) for p in pictures]
        return SetDetail(**record.model_dump(), items=tuple(items))

    def create(self, name: str, trigger: str = "") -> SetRecord:
        """An empty set."""
        name = name.strip()
        if not name or len(name) > 190:
            raise InputError(f"set name {name[:40]!r}: give it 1 to 190 characters")
        id = new_id()
        part = self._layout.sets / f".{id}.part"
        with self._whole(id, part):
            part.mkdir()
            with self._db.read() as session:
                title = rows.free_name(session, name)
            rows.write_about(part, title, trigger.strip())
            part.rename(self._layout.sets / id)
            return _record(rows.adopt(self._db, self._layout, id))

    def edit(self, ref: str, name: str | None = None, trigger: str | None = None) -> SetRecord:
        """Change name or trigger word."""
        record, folder = self._own(ref)
        with self._db.write() as session:
            row = session.get_one(SetRow, record.id)
            if name and name.strip() != row.name:
                row.name = rows.free_name(session, name.strip())
            row.trigger = record.trigger if trigger is None else trigger.strip()[:200]
            rows.write_about(folder, row.name, row.trigger)
        return self._find(record.id)[0]

    def add_files(self, ref: str, files: Iterable[tuple[str, Path]], progress: Progress | None = None) -> ImportRecord:
        """Take pictures, captions and zips into a set; what could not be taken is listed with its reason."""
        record, folder = self._own(ref)
        report = imports.import_files(files, folder, progress)
        return self._imported(record.id, report)

    def import_folder(self, name: str, folder: Path, trigger: str = "", progress: Progress | None = None) -> ImportRecord:
        """A new set from a folder; if it holds no picture, there is no set and the error says why."""
        files = list(imports.files_in(folder.expanduser()))
        return self.import_files(name, files, trigger, progress)

    def import_files(self, name: str, files: Iterable[tuple[str, Path]], trigger: str = "", progress: Progress | None = None) -> ImportRecord:
        """A new set from files, whole or not at all."""
        id = new_id()
        report = imports.import_files(files, self._layout.sets / id, progress)
        if not (self._layout.sets / id).is_dir():
            first = next(iter([*report.rejected, *report.skipped]), None)
            reason = f"{first.name}: {first.message}" if first else "nothing was given"
            raise ImageError(f"image set {name!r} was not made, because no picture could be taken; {reason}")
        with self._whole(id):
            with self._db.read() as session:
                title = rows.free_name(session, name.strip() or "pictures")
            about = read_about(self._layout.sets / id)
            rows.write_about(self._layout.sets / id, title, trigger.strip() or about.get("trigger", ""))
            rows.adopt(self._db, self._layout, id)
            return self._imported(id, report)

    def set_caption(self, ref: str, picture: str, text: str) -> None:
        """Write the caption beside a picture; an empty one removes it."""
        record, folder = self._own(ref)
        path = inside(folder, picture)
        if len(text) > CAPTION_CHARACTERS:
            raise InputError(f"caption of {picture}: {len(text)} characters are more than {CAPTION_CHARACTERS}")
        beside = _caption(folder, picture)
        if text.strip():
            write_whole(beside or path.with_suffix(".txt"), text.strip().encode())
        elif beside is not None:
            beside.unlink()
        self._recount(record)

    def count(self, ref: str) -> SetRecord:
        """Bring the record of a set up to its folder."""
        self._recount(self._find(ref)[0])
        return self._find(ref)[0]

    def remove_picture(self, ref: str, picture: str) -> str:
        """Delete a picture with its caption; the token restores both."""
        record, folder = self._own(ref)
        path = inside(folder, picture)
        with self._db.read() as session:
            not_in_use(session, f"set:{record.id}", f"image set {record.name!r}")
        beside = _caption(folder, picture)
        token = trash.throw_files(self._layout, record.id, [path, beside] if beside else [path])
        self._recount(record)
        return token

    def remove(self, ref: str) -> str:
        """Delete a set; the token restores it within 30 days."""
        record, folder = self._own(ref)
        with self._db.read() as session:
            not_in_use(session, f"set:{record.id}", f"image set {record.name!r}")
            row = session.get_one(SetRow, record.id)
        return trash.throw(self._db, self._layout, "set", row, folder)

    def restore(self, token: str) -> SetRecord:
        """Undo `remove` or `remove_picture`."""
        id = trash.restore_files(self._layout, token)
        if id is None:
            id = trash.restore(self._db, self._layout, token, "set", _renamed)
        rows.recount(self._db, self._layout, id)
        return self._find(id)[0]

    def picture_path(self, ref: str, picture: str) -> Path:
        return inside(self._find(ref)[1], picture)

    def thumbnail(self, ref: str, picture: str, side: int = 256) -> Path:
        return thumbnail(self._layout, self.picture_path(ref, picture), side)

    def resolve(self, ref: str) -> Resolved:
        """The set of a run by name, id or folder, with at least one picture. Raises ImageError."""
        try:
            record, folder = self._find(ref)
        except NotFound:
            folder, record = Path(ref).expanduser().absolute(), None
            if not folder.is_dir():
                raise ImageError(f"image set {ref!r} is neither a set in the studio nor a folder of pictures") from None
        found: ImageSet = read_set(folder)
        own = record is not None and not record.builtin
        return Resolved(record.id if record and own else "", folder, record.trigger if record else found.trigger, len(found.pictures))

    @contextlib.contextmanager
    def _whole(self, id: str, *parts: Path) -> Iterator[None]:
        """A new set is there with its row, or neither is: who is told that it failed must not find it later."""
        try:
            with or_nothing(self._layout.sets / id, *parts, room=self._layout.sets):
                yield
        except BaseException as error:
            self._db.forget(SetRow, id, error)
            raise

    def _imported(self, id: str, report: imports.Report) -> ImportRecord:
        rows.recount(self._db, self._layout, id)
        accepted = [Outcome(name=item.name, stored=item.stored, notes=item.notes) for item in report.accepted]
        rejected, skipped = ([Outcome(name=i.name, code=i.code, message=i.message) for i in part] for part in (report.rejected, report.skipped))
        return ImportRecord(set=self._find(id)[0], accepted=tuple(accepted), rejected=tuple(rejected), skipped=tuple(skipped))

    def _find(self, ref: str) -> tuple[SetRecord, Path]:
        with self._db.read() as session:
            row = session.get(SetRow, ref) or session.scalar(select(SetRow).where(SetRow.name == ref))
        if row is not None:
            return _record(row), self._layout.sets / row.id
        for folder in _builtins():
            if ref in (folder.name, read_about(folder).get("title")):
                return _builtin(folder), folder
        raise NotFound(f"no image set {ref!r}")

    def _own(self, ref: str) -> tuple[SetRecord, Path]:
        record, folder = self._find(ref)
        if record.builtin:
            raise InputError(f"{record.name!r} ships with the studio and cannot be changed; copy it into a set of your own first")
        return record, folder

    def _recount(self, record: SetRecord) -> None:
        if not record.builtin:
            rows.recount(self._db, self._layout, record.id)


def _caption(folder: Path, picture: str) -> Path | None:
    return caption_of(picture, caption_files({path.name: path for path in regular_files(folder)}))


def _builtins() -> "list[Path]":
    return [Path(entry.path) for entry in sorted(os.scandir(BUILTIN), key=lambda e: e.name) if entry.is_dir()] if BUILTIN.is_dir() else []


def _builtin(folder: Path) -> SetRecord:
    about = read_about(folder)
    words = {key: about.get(key, "") for key in ("trigger", "kind", "licence", "description")}
    return SetRecord(id=folder.name, name=about.get("title", folder.name), builtin=True, **words, **rows.count(folder))


def _record(row: SetRow) -> SetRecord:
    return SetRecord(**row.values())


def _renamed(session: Session, values: dict[str, object]) -> None:
    values["name"] = rows.free_name(session, str(values["name"]))
