"""Files, folders and zips into the folder of an image set: pictures cleaned of metadata, captions beside them.

A new set appears whole or not at all; files join an existing set one by one, each atomically. One bad file never stops the
others, and every file that was given is found in exactly one list of the report.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from studio.data.archives import MAX_DEPTH, Item, Refusal, expand, is_archive, open_archive
from studio.data.decoding import PictureError, read_bytes
from studio.data.images import regular_files
from studio.data.intake import Accepted, Intake, Progress, Rejected, Report, is_clutter, sync
from studio.errors import ImageError

__all__ = ["Accepted", "Progress", "Rejected", "Report", "files_in", "import_files", "remove_leftovers"]

PART = ".part-"


def import_files(files: Iterable[tuple[str, Path]], folder: Path, progress: Progress | None = None) -> Report:
    """Take pictures, captions, zips and folders into the set at `folder`; the first of each pair is its name for people.

    A set that is new and would hold no picture is not created. Raises ImageError if the disk fails or the place cannot be
    written; what `progress(done, total, name)` raises passes through. Neither leaves a part of a new set behind.
    """
    report = Report()
    new = not folder.exists()
    place = _part_folder(folder) if new else folder
    try:
        with ExitStack() as archives:
            items = list(_items(files, report, archives))
            Intake(place, report).take(items, progress)
        if new and report.pictures:
            place.chmod(0o755)
            sync(place)
            place.rename(folder)
            sync(folder.parent)
    except OSError as error:
        raise _disk_failed(error, folder, new) from error
    finally:
        if new and place.exists():
            shutil.rmtree(place)
    return report


def files_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """Visible files in a folder and its sub-folders, named by their path inside it; links out and special files passed over."""
    if not folder.is_dir():
        raise ImageError(f"{str(folder)!r} is not a folder; name a folder of pictures")
    for home, inside, _ in os.walk(folder):
        here = Path(home)
        relative = here.relative_to(folder)
        inside[:] = sorted(name for name in inside if not is_clutter(name) and len(relative.parts) < MAX_DEPTH - 1)
        for path in sorted(regular_files(here)):
            yield (relative / path.name).as_posix(), path


def remove_leftovers(parent: Path) -> int:
    """Delete what killed imports left in `parent`, half-made sets and half-written files in sets; returns how many.

    Only for a moment when no import can be running, such as the start of the studio.
    """
    leftovers = [*parent.glob(f".*{PART}*"), *parent.glob(f"*/.*{PART}*")]
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return len(leftovers)


def _part_folder(folder: Path) -> Path:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{folder.name}{PART}", dir=folder.parent))
    except OSError as error:
        raise ImageError(f"image set {folder.name}: cannot be created ({error.strerror}); choose a writable data folder") from error


def _items(files: Iterable[tuple[str, Path]], report: Report, archives: ExitStack) -> Iterator[Item]:
    """Every single file, zips and folders opened up; what cannot be opened goes to the report."""
    for number, (name, path) in enumerate(files):
        home = f"{number}:{name}"  # two zips may have one name
        try:
            if path.is_dir():
                for inner, inner_path in files_in(path):
                    relative = PurePosixPath(inner)
                    yield Item(f"{name}/{inner}", relative, f"{home}/{relative.parent}", _reader(inner_path))
            elif path.is_file() and is_archive(path):
                for member in expand(archives.enter_context(open_archive(path)), name, home):
                    if isinstance(member, Refusal):
                        report.rejected.append(Rejected(member.name, member.code, member.message))
                    else:
                        yield member
            else:
                inner = PurePosixPath(name.replace("\\", "/"))
                yield Item(name, inner, str(inner.parent), _reader(path))
        except PictureError as error:
            report.rejected.append(Rejected(name, error.code, str(error)))
        except OSError as error:
            report.rejected.append(Rejected(name, "unreadable", f"cannot be read ({error.strerror or type(error).__name__})"))


def _reader(path: Path) -> Callable[[], bytes]:
    return lambda: read_bytes(path)


def _disk_failed(error: OSError, folder: Path, new: bool) -> ImageError:
    kept = "nothing was created" if new else "what was added before stays"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(folder.parent).free
        return ImageError(f"image set {folder.name}: the disk is full, {free / 2**20:.0f} MiB are free; make room and import again, {kept}")
    return ImageError(f"image set {folder.name}: cannot be written ({error.strerror or error}); {kept}")
