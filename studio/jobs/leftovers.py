"""What processes that died have left behind: half files that nobody will finish."""

import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from studio.jobs.folder import JobFolder
from studio.jobs.processes import WorkerFolder, alive
from studio.library.layout import Layout
from studio.training import checkpoint

STALE_SECONDS = 3600.0  # a part file nobody finished for so long belongs to a dead process


def collect(layout: Layout) -> None:
    """Remove part files of dead workers at once, and those of unknown owners when they are old."""
    for folder in _folders(layout.jobs):
        tidy(JobFolder(folder))
    old = time.time() - STALE_SECONDS
    cached = list((layout.cache / "encoded").glob("*/*.part-*"))
    homes = [WorkerFolder(layout.workers, path.name) for path in _folders(layout.workers)]
    if not any(home.state() or home.far for home in homes):  # workers of other machines cannot be looked at from here
        _remove(cached)
        for home in homes:
            _remove([*home.path.glob(".worker.*.part"), *home.path.glob("inbox/.*")])
    _remove(path for path in cached if path.exists() and path.lstat().st_mtime < old)
    for folder in (layout.jobs, layout.sets, layout.adapters, layout.tmp, *_folders(layout.adapters), *_folders(layout.images)):
        _remove(path for path in folder.iterdir() if (folder == layout.tmp or path.name.endswith(".part")) and path.lstat().st_mtime < old)


def tidy(folder: JobFolder) -> None:
    """Half files in the folder of a job whose worker is gone; nothing while one works on it."""
    try:
        claim = folder.claim()
    except (OSError, ValidationError):
        return  # without a readable job.json it is not known whose it is
    if claim is not None and (claim.node or claim.cluster or alive(claim.pid, claim.started)):
        return
    checkpoint.sweep(folder.path / "checkpoints")
    _remove(path for pattern in (".*.part", "*/.*.part", "output/.*.safetensors*") for path in folder.path.glob(pattern))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _folders(parent: Path) -> Iterator[Path]:
    """Folders in a folder, without the hidden ones that are still being made."""
    for path in sorted(parent.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            yield path
