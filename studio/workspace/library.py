"""LoRAs: list, look into, add, delete with undo, restore."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from studio import families
from studio.errors import FormatError, NotFound
from studio.families.base import Base
from studio.generation.accelerators import recognise
from studio.library import adapters, civitai, inspection, trash
from studio.library.civitai import Card
from studio.library.database import Database
from studio.library.ids import new_id
from studio.library.layout import Layout
from studio.library.models import AdapterRow
from studio.workspace.guards import not_in_use
from studio.workspace.records import AdapterRecord

PAGE = 200


class Library:
    """Use cases around adapters."""

    def __init__(self, db: Database, layout: Layout) -> None:
        self._db = db
        self._layout = layout

    def list(self, query: str = "", family: str = "", before: str | None = None, limit: int = PAGE) -> list[AdapterRecord]:
        """Newest first; `query` is looked for in name, trigger and base. `before`: the last id of the page before."""
        statement = select(AdapterRow).order_by(AdapterRow.created.desc(), AdapterRow.id.desc()).limit(limit)
        for word in query.split():
            like = f"%{_escaped(word)}%"
            statement = statement.where(or_(*(column.ilike(like, escape="\\") for column in (AdapterRow.name, AdapterRow.trigger, AdapterRow.base))))
        if family:
            statement = statement.where(AdapterRow.family == family)
        with self._db.read() as session:
            if before:
                last = _row(session, before)
                statement = statement.where(or_(AdapterRow.created < last.created, (AdapterRow.created == last.created) & (AdapterRow.id < last.id)))
            return [_brief(row) for row in session.scalars(statement)]

    def show(self, ref: str) -> AdapterRecord:
        """By id or name; `facts["report"]` is the proof of a file that the studio wrote."""
        with self._db.read() as session:
            return record(_row(session, ref))

    def add(self, path: Path, name: str | None = None, card: Card | None = None) -> AdapterRecord:
        """Copy a LoRA file into the library; the same file twice gives the one that is there.

        card: what a side file says of it; without one, the side files beside `path` are looked at. A card about another file is passed over.
        """
        path = path.expanduser()
        if not path.is_file():
            raise FormatError(f"{path}: no such file")
        told = adapters.describe(path)
        card = card or civitai.beside(path)
        if card and not card.about(told["sha256"], told["autov3"]):
            card = None
        with self._db.read() as session:
            row = session.scalar(select(AdapterRow).where(AdapterRow.sha256 == told["sha256"]).limit(1))
        if row is None:
            word = card.words[0][:200] if card and card.words and not told["trigger"] else ""
            row = adapters.register(self._db, self._layout, new_id(), path, {"name": name or path.stem, "trigger": word})
        if card:
            civitai.keep(card, self._layout.adapters / row.id)
        return record(row)

    def path(self, ref: str) -> Path:
        """The file of an adapter, for download."""
        with self._db.read() as session:
            return adapters.file_of(self._layout, _row(session, ref))

    def preview(self, ref: str) -> Path:
        """Its preview picture; NotFound if it has none."""
        with self._db.read() as session:
            row = _row(session, ref)
        if not row.preview:
            raise NotFound(f"LoRA {row.name!r} has no preview picture")
        return self._layout.adapters / row.id / row.preview

    def find(self, ref: str) -> Path:
        """The file behind a library name, id or file path."""
        return self.locate(ref)[0]

    def resolve(self, ref: str, family: str, files: bool = True) -> tuple[Path, str]:
        """File and library id ("" outside the library) of an adapter that fits the family. Raises FormatError if it does not fit.

        files: whether `ref` may be a path.
        """
        path, id = self.locate(ref, files)
        fits(path, self.show(id).family if id else adapters.describe(path)["family"], family)
        return path, id

    def locate(self, ref: str, files: bool = True) -> tuple[Path, str]:
        """File and library id ("" outside the library) behind a name, id or path. Raises NotFound."""
        with self._db.read() as session:
            row = _lookup(session, ref)
        if row is not None:
            return adapters.file_of(self._layout, row), row.id
        path = Path(ref).expanduser()
        if files and path.suffix == ".safetensors" and path.is_file():
            return path.absolute(), ""
        raise NotFound(f"LoRA {ref!r} is neither in the library nor a .safetensors file; `library list` shows what there is")

    def rename(self, ref: str, name: str) -> AdapterRecord:
        """Call an adapter something else; its file follows, because prompts find it by file name."""
        with self._db.write() as session:
            row = _row(session, ref)
            old = adapters.file_of(self._layout, row)
            row.name = adapters.free_name(session, name)
            session.flush()
            old.rename(adapters.file_of(self._layout, row))
            return record(row)

    def remove(self, ref: str) -> str:
        """Delete an adapter; the token restores it within 30 days."""
        with self._db.read() as session:
            row = _row(session, ref)
            not_in_use(session, f"adapter:{row.id}", f"LoRA {row.name!r}")
        return trash.throw(self._db, self._layout, "adapter", row, self._layout.adapters / row.id)

    def restore(self, token: str) -> AdapterRecord:
        """Undo `remove`."""
        id = trash.restore(self._db, self._layout, token, "adapter", self._renamed)
        return self.show(id)

    def _renamed(self, session: Session, values: dict[str, Any]) -> None:
        old = values["name"]
        values["name"] = adapters.free_name(session, old)
        if values["name"] != old:
            content = next(self._layout.trash.glob(f"*/content/{old}.safetensors"))
            content.rename(content.with_name(f"{values['name']}.safetensors"))

    def inspect(self, path: Path, base: Base | None = None, rare_hashes: bool = False) -> dict[str, Any]:
        """What a file is, what it says of itself, which programs load it and whether it fits a base; nothing is added.

        Raises FormatError if it is no .safetensors file.
        """
        path = path.expanduser()
        if not path.is_file():
            raise FormatError(f"{path}: no such file")
        return inspection.inspected(path, base, rare_hashes)

    def fit(self, path: Path, base: Base) -> dict[str, Any]:
        """Whether the LoRA in a file fits a base, and in words why not."""
        return inspection.fit(path, base)

    def edit(self, ref: str, changes: Mapping[str, str | None], picture: Path | None = None) -> dict[str, Any]:
        """Change what a library adapter or a file says of itself; its tensors keep every byte. What it says then.

        changes: title, description, author, license, trigger, tags, usage_hint, default_weight, merged_from or an entry by its name in the
        file; None or empty takes it out. picture: becomes the thumbnail.
        """
        path, id = self.locate(ref)
        words = inspection.rewritten(path, changes, picture)
        if id:
            with self._db.write() as session:
                row = _row(session, id)
                told = adapters.describe(path)
                told["facts"] |= {"report": {**row.facts["report"], **inspection.seen_by_others(path)}} if "report" in row.facts else {}
                row.sha256, row.bytes, row.facts, row.trigger = told["sha256"], told["bytes"], told["facts"], told["trigger"]
        return words


def cards(files: Sequence[tuple[str, Path]]) -> tuple[dict[str, Card], list[tuple[str, Path]]]:
    """What side files among these (name, path) say, by the stem of the LoRA that they are about; and all other files."""
    stems = {name: civitai.stem_of(name) for name, _ in files}
    read = {stems[name]: civitai.read(path.read_bytes()) for name, path in files if stems[name] and path.stat().st_size <= civitai.LARGEST}
    return {stem: card for stem, card in read.items() if card}, [(name, path) for name, path in files if not stems[name]]


def fits(path: Path, found: str, family: str) -> None:
    """Raise FormatError if an adapter of family `found` is not for `family`."""
    if found != family:
        has, needs = (families.FAMILIES[name].facts.title if name in families.FAMILIES else "an unknown model" for name in (found, family))
        raise FormatError(f"{path.name} is a LoRA for {has}, the base is {needs}; choose another base or LoRA")


def record(row: AdapterRow) -> AdapterRecord:
    made_for = recognise(row.family, row.name, str(row.facts.get("title") or ""))
    return AdapterRecord(**{**row.values(), "preview": bool(row.preview), "accelerator": made_for})


def _brief(row: AdapterRow) -> AdapterRecord:
    """For lists: without the proof, which is longer than all the rest."""
    found = record(row)
    return found.model_copy(update={"facts": {key: value for key, value in found.facts.items() if key != "report"}})


def _lookup(session: Session, ref: str) -> AdapterRow | None:
    by_id = session.get(AdapterRow, ref)
    return by_id or session.scalar(select(AdapterRow).where(AdapterRow.name == ref))


def _row(session: Session, ref: str) -> AdapterRow:
    row = _lookup(session, ref)
    if row is None:
        raise NotFound(f"no LoRA {ref!r} in the library; `library list` shows all")
    return row


def _escaped(word: str) -> str:
    return re.sub(r"([\\%_])", r"\\\1", word)
