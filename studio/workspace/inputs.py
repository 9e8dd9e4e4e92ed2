"""Pictures to start a drawing from: sent in, taken from the gallery, or named by their file."""

from pathlib import Path

from studio.errors import ImageError, NotFound
from studio.generation import wildcards
from studio.library import inputs, pictures
from studio.library.database import Database
from studio.library.layout import Layout
from studio.library.models import ImageRow
from studio.workspace.records import InputRecord


class Inputs:
    """Use cases around them."""

    def __init__(self, db: Database, layout: Layout) -> None:
        self._db = db
        self._layout = layout

    @property
    def wildcards(self) -> Path:
        """The folder of choices for prompts."""
        return self._layout.wildcards

    def wildcard_names(self) -> list[str]:
        return wildcards.names(self._layout.wildcards)

    def add(self, path: Path) -> InputRecord:
        """Keep a copy of a picture; the same one twice is kept once."""
        return _record(*inputs.keep(self._layout, path))

    def use(self, ref: str) -> InputRecord:
        """Keep what `ref` names: a kept picture, a gallery id, or a file. Raises ImageError in one line if it is none of them."""
        known = inputs.find(self._layout, ref)
        if known is not None:
            return _record(ref, known)
        with self._db.read() as session:
            row = session.get(ImageRow, ref)
        path = pictures.file_of(self._layout, row) if row else Path(ref).expanduser()
        if not path.is_file():
            raise ImageError(f"{ref}: neither a picture of the gallery, nor one that was sent in, nor a file here")
        return self.add(path)

    def path(self, name: str) -> Path:
        """The file of a kept picture."""
        found = inputs.find(self._layout, name)
        if found is None:
            raise NotFound(f"no picture {name!r} was sent in")
        return found

    def known(self, ref: str) -> bool:
        """Whether `ref` means a picture of the studio, rather than a file."""
        with self._db.read() as session:
            return inputs.find(self._layout, ref) is not None or session.get(ImageRow, ref) is not None


def _record(name: str, path: Path) -> InputRecord:
    from studio.data.images import upright_size_of

    width, height = upright_size_of(path)
    return InputRecord(name=name, width=width, height=height)
