"""Base models: those that ship with the studio, registered ones, downloads."""

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select

from studio import families
from studio.config import BaseChoice, safe_stem
from studio.errors import BaseError, InputError, NotFound
from studio.families import sources
from studio.families.base import Base
from studio.library import trash
from studio.library.database import Database
from studio.library.layout import Layout
from studio.library.models import BaseRow
from studio.workspace.records import BaseRecord

Progress = Callable[[int, int], None]


class Bases:
    """Use cases around base models."""

    def __init__(self, db: Database, layout: Layout) -> None:
        self._db = db
        self._layout = layout

    def list(self) -> list[BaseRecord]:
        """Built-in ones first, then by name."""
        return [*(_record(base) for base in sources.builtin()), *(self._registered(row) for row in self._rows())]

    def samplers(self) -> "dict[str, list[str]]":
        """Names of samplers by family."""
        return {name: list(families.get(name).facts.samplers) for name in families.FAMILIES}

    def find(self, name: str) -> BaseRecord:
        """By registered or built-in name, folder, file or hub id. Raises BaseError with the way out."""
        return _record(self.resolve(BaseChoice(base=name)))

    def resolve(self, choice: BaseChoice) -> Base:
        """The base of a configuration, with the parts that were registered with it or are named to come from elsewhere."""
        rows = {row.name: row for row in self._rows()}
        row = rows.get(choice.base)
        vae = choice.vae or (row.vae if row else None)
        encoders = choice.encoders or (row.encoders if row else None)
        return sources.find(choice.base, {name: Path(known.path) for name, known in rows.items()}, vae, encoders)

    def add(self, name: str, path: Path, vae: str | None = None, encoders: str | None = None) -> BaseRecord:
        """Register a folder or file under a name; it stays where it is."""
        path = path.expanduser().absolute()
        base = sources.identify(path)
        if name in self._names():
            raise InputError(f"a base called {name!r} exists; choose another name, or remove that one")
        if name != safe_stem(name):
            raise InputError(f"base name {name!r}: use letters, digits, . _ -")
        row = BaseRow(name=name, path=str(path), vae=_absolute(vae), encoders=_absolute(encoders), family=base.family, bytes=base.bytes, added=time.time())
        if row.vae or row.encoders:
            sources.find(str(path), {}, row.vae, row.encoders)
        with self._db.write() as session:
            session.add(row)
        return self._registered(row)

    def download(self, repo: str, token: str | None = None, name: str | None = None, progress: Progress | None = None) -> BaseRecord:
        """Fetch a hub model into the data folder and register it."""
        if os.environ.get("STUDIO_OFFLINE"):
            raise BaseError(f"{repo} cannot be downloaded: STUDIO_OFFLINE is set; unset it to download")
        name = name or safe_stem(repo.rpartition("/")[2])
        target = self._layout.bases / name
        sources.download(repo, target, token, progress)
        with self._db.read() as session:
            known = session.get(BaseRow, name)
        return self._registered(known) if known else self.add(name, target)

    def remove(self, name: str) -> str:
        """Forget a registered base; the token restores it. Files are deleted only where the studio downloaded them, into the trash."""
        with self._db.read() as session:
            row = session.get(BaseRow, name)
        if row is None:
            raise NotFound(f"no registered base {name!r}; built-in ones stay" if name in self._names() else f"no registered base {name!r}; see `base list`")
        own = Path(row.path)
        return trash.throw(self._db, self._layout, "base", row, own if own.is_relative_to(self._layout.bases) else None)

    def restore(self, token: str) -> BaseRecord:
        """Undo `remove`."""
        return self.find(trash.restore(self._db, self._layout, token, "base"))

    def _rows(self) -> "list[BaseRow]":
        with self._db.read() as session:
            return [*session.scalars(select(BaseRow).order_by(BaseRow.name))]

    def _names(self) -> set[str]:
        return {base.name for base in sources.builtin()} | {row.name for row in self._rows()}

    def _registered(self, row: BaseRow) -> BaseRecord:
        try:
            return _record(dataclasses.replace(sources.identify(Path(row.path)), name=row.name))
        except BaseError as error:
            return BaseRecord(name=row.name, title=row.name, family=row.family, path=row.path, bytes=row.bytes, problem=str(error))


def _absolute(part: str | None) -> str | None:
    """A path made independent of the working folder; names of other bases stay as they are."""
    if not part:
        return None
    path = Path(part).expanduser()
    return str(path.absolute()) if path.exists() else part


def _record(base: Base) -> BaseRecord:
    return BaseRecord(
        name=base.name,
        title=base.title or base.name,
        family=base.family,
        family_title=families.get(base.family).facts.title,
        kind=base.kind,
        path=str(base.path),
        licence=base.licence,
        bytes=base.bytes,
        builtin=base.builtin,
        blocks=tuple(families.get(base.family).facts.blocks),
        habits=dict(base.habits),
    )
