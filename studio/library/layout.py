"""Where everything lies in the data folder."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from studio.errors import InputError, NotFound

PARTS = ("sets", "jobs", "adapters", "images", "inputs", "wildcards", "presets", "bases", "cache", "tmp", "trash", "workers")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}")


@dataclass(frozen=True)
class Layout:
    """Paths inside one data folder; `create` makes them."""

    root: Path

    @property
    def database(self) -> Path:
        return self.root / "studio.db"

    def lock(self, node: str = "") -> Path:
        """Held by the one process that hands out jobs, or by one a node where several share this folder."""
        return self.root / (f"dispatcher-{node}.lock" if node else "dispatcher.lock")

    @property
    def sets(self) -> Path:
        return self.root / "sets"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def inputs(self) -> Path:
        """Pictures that drawings start from, by their content."""
        return self.root / "inputs"

    @property
    def wildcards(self) -> Path:
        """Choices for prompts, one text file each."""
        return self.root / "wildcards"

    @property
    def presets(self) -> Path:
        return self.root / "presets"

    @property
    def bases(self) -> Path:
        return self.root / "bases"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def thumbnails(self) -> Path:
        return self.root / "cache" / "thumbs"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def trash(self) -> Path:
        return self.root / "trash"

    @property
    def workers(self) -> Path:
        return self.root / "workers"

    def create(self) -> "Layout":
        """Make the folders, readable by the owner alone. Raises InputError if that is impossible."""
        try:
            if not self.root.exists():
                self.root.mkdir(parents=True, mode=0o700)
            for part in PARTS:
                (self.root / part).mkdir(exist_ok=True, mode=0o700)
            check_writable(self.root)
        except OSError as error:
            raise InputError(f"data folder {self.root} cannot be written ({error.strerror}); name another one with --data or STUDIO_DATA") from None
        return self


def data_root(data: Path | None = None) -> Path:
    """The data folder: as given, else STUDIO_DATA, else the platform's user data folder."""
    if data is None and os.environ.get("STUDIO_DATA"):
        data = Path(os.environ["STUDIO_DATA"])
    if data is None:
        from platformdirs import user_data_path

        data = user_data_path("lora-studio", appauthor=False)
    return data.expanduser().absolute()


def check_writable(folder: Path) -> None:
    """Create and remove a file in `folder`; OSError says why it cannot be done. Permission bits alone do not tell."""
    import tempfile

    with tempfile.TemporaryFile(dir=folder, prefix=".lora-studio-"):
        pass


def checked_id(text: str, what: str) -> str:
    """`text` if it can be the name of one folder entry, so that no id walks out of the data folder."""
    if not _ID.fullmatch(text):
        raise NotFound(f"no {what} {text!r}")
    return text


def inside(folder: Path, relative: str) -> Path:
    """The path of `relative` under `folder`; NotFound if it leads out of it, by `..`, a link or an absolute path."""
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise NotFound(f"no file {relative!r} there")
    return path
