"""One import into one folder: what is there already, what pairs with what, and what became of every file.

Stored copies hold pixels, alpha, orientation and colour, and nothing else: no GPS, author, comments or thumbnails. JPEG keeps
its own compressed pixels, since compressing again would cost detail that training sees; everything else becomes PNG.
"""

import io
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple

from studio.data import jpeg, pairs
from studio.data.archives import Item
from studio.data.captions import CAPTION_SUFFIXES, caption_files, caption_lines, caption_of, fold, numbered_captions
from studio.data.decoding import Decoded, PictureError, decode_noted, pixel_hash
from studio.data.images import about_fields, is_picture_name, regular_files, upright_size_of
from studio.data.masks import ENDING, is_mask_name
from studio.data.masks import FOLDER as MASKS
from studio.data.names import safe_stem
from studio.errors import ImageError

CLUTTER = ("thumbs.db", "desktop.ini", "__macosx")

Progress = Callable[[int, int, str], None]


class Accepted(NamedTuple):
    """A file as it was called, the file in the set that it became, and what was changed on the way."""

    name: str
    stored: str
    notes: tuple[str, ...] = ()


class Rejected(NamedTuple):
    """A file that was not taken: a stable code, and one plain sentence."""

    name: str
    code: str
    message: str


@dataclass
class Report:
    """What became of every file; rejected ones are at fault, skipped ones are not needed."""

    accepted: list[Accepted] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    skipped: list[Rejected] = field(default_factory=list)

    @property
    def submitted(self) -> int:
        return len(self.accepted) + len(self.rejected) + len(self.skipped)

    @property
    def pictures(self) -> int:
        return sum(is_picture_name(item.stored) and not is_mask_name(item.stored) for item in self.accepted)


@dataclass(frozen=True)
class _Known:
    """A picture of the set under the name by which a caption may ask for it."""

    home: str
    name: str
    stored: str
    keep_caption: bool = False


class Intake:
    """Takes items into a folder that holds a set, or the beginning of one."""

    def __init__(self, folder: Path, report: Report) -> None:
        self.folder = folder
        self.report = report
        present = list(regular_files(folder))
        self.stems = {fold(path.stem) for path in present}
        self.known = [_Known(".", path.name, path.name) for path in present if is_picture_name(path.name) and not is_mask_name(path.name)]
        self.unhashed = {known.stored for known in self.known}
        self.by_pixels: dict[str, str] = {}

    def take(self, items: Sequence[Item], progress: Progress | None = None) -> None:
        """Pictures first, so that masks and captions find theirs whatever the order they came in."""
        done = 0
        masks = [item for item in items if _is_mask(item)]
        captions = [item for item in items if _is_caption(item)]
        lists = [item for item in items if pairs.is_list(item.inner.name)]
        others = [item for item in items if not _is_caption(item) and not _is_mask(item) and not pairs.is_list(item.inner.name)]
        wanted: dict[int, list[_Known]] = {}
        for item in others + masks + captions + lists:
            if progress:
                progress(done, len(items), item.name)
            if done == len(others) + len(masks):
                wanted = self._beside(captions)
            try:
                if any(is_clutter(part) for part in item.inner.parts):
                    self._skip(item, "hidden", "a hidden or system file, not a picture")
                elif _is_caption(item):
                    self._take_caption(item, wanted.get(id(item), []))
                elif _is_mask(item):
                    self._take_mask(item)
                elif item.inner.name.lower() == "set.json":
                    self._take_about(item)
                elif pairs.is_list(item.inner.name):
                    self._take_pairs(item)
                else:
                    self._take_picture(item)
            except PictureError as error:
                self.report.rejected.append(Rejected(item.name, error.code, str(error)))
            except ImageError as error:
                self.report.rejected.append(Rejected(item.name, "bad_pairs", str(error)))
            done += 1
        if not lists:
            self._keep_named_pairs()
        if progress:
            progress(done, len(items), "")

    def _keep_named_pairs(self) -> None:
        """List the pairs that names tell of where a picture got another name, or was in the set as another's twin."""
        named = {(known.home, fold(PurePath(known.name).stem)): known for known in self.known}
        rows = []
        for (home, stem), better in named.items():
            worse = named.get((home, stem.removesuffix(pairs.BETTER) + pairs.WORSE)) if stem.endswith(pairs.BETTER) else None
            if worse and better.stored != worse.stored:
                rows.append((better, worse))
        if any(fold(Path(known.stored).stem) != fold(PurePath(known.name).stem) for row in rows for known in row):
            pairs.extend(self.folder, [pairs.Row(better.stored, worse.stored) for better, worse in rows])

    def _take_picture(self, item: Item) -> None:
        content = item.read()
        found = decode_noted(content)
        pixels = pixel_hash(found.image)
        twin = self._twin(found, pixels)
        if twin:
            self.known.append(_Known(item.home, item.inner.name, twin, keep_caption=True))
            self._skip(item, "duplicate", f"the same picture as {twin}")
            return
        kept, suffix = _clean_copy(content, found, pixels)
        stem = safe_stem(item.inner.name, self.stems)
        write(self.folder / (stem + suffix), kept)
        self.stems.add(fold(stem))
        self.by_pixels[pixels] = stem + suffix
        self.known.append(_Known(item.home, item.inner.name, stem + suffix))
        self.report.accepted.append(Accepted(item.name, stem + suffix, found.notes))

    def _twin(self, found: Decoded, pixels: str) -> str | None:
        """The picture of the set with these pixels. Those that were there before are decoded only if their size is the same."""
        if pixels not in self.by_pixels:
            for stored in sorted(self.unhashed):
                try:
                    if upright_size_of(self.folder / stored) == found.image.size:
                        self.unhashed.discard(stored)
                        self.by_pixels[pixel_hash(decode_noted(self.folder / stored).image)] = stored
                except PictureError:
                    self.unhashed.discard(stored)  # broken in the set already, so no twin of a sound picture
        return self.by_pixels.get(pixels)

    def _beside(self, captions: Sequence[Item]) -> dict[int, list[_Known]]:
        """id of a caption item -> the pictures it belongs to; several pictures may share one."""
        homes: dict[str, dict[str, Item]] = {}
        for item in captions:
            homes.setdefault(item.home, {})[item.inner.name] = item
        beside = {home: caption_files(files) for home, files in homes.items()}
        wanted: dict[int, list[_Known]] = {}
        for known in self.known:
            caption = caption_of(known.name, beside.get(known.home, {}))
            for item in [*([caption] if caption else []), *numbered_captions(known.name, beside.get(known.home, {}))]:
                wanted.setdefault(id(item), []).append(known)
        return wanted

    def _take_mask(self, item: Item) -> None:
        home, stem = mask_target(item.home, item.inner)
        known = next((known for known in self.known if known.home == home and fold(PurePath(known.name).stem) == stem), None)
        if known is None:
            self._skip(item, "no_picture", "a mask, and no picture of this name is in the set")
            return
        found = decode_noted(item.read()).image.convert("L")
        out = io.BytesIO()
        found.save(out, "PNG")
        path = self.folder / f"{Path(known.stored).stem}{ENDING}.png"
        write(path, out.getvalue())
        self.report.accepted.append(Accepted(item.name, path.name))

    def _take_caption(self, item: Item, pictures: Sequence[_Known]) -> None:
        if not pictures:
            self._skip(item, "no_picture", "no picture of this name is in the set, or another caption goes before it")
            return
        text = "\n".join(caption_lines(item.read()))
        written = ""
        for known in pictures:
            path = self.folder / f"{Path(known.stored).stem}{_number(item, known)}.txt"
            if not (known.keep_caption and path.exists()):
                write(path, (text + "\n").encode())
                written = written or path.name
        if written:
            self.report.accepted.append(Accepted(item.name, written))
        else:
            self._skip(item, "duplicate", "its picture was in the set with a caption already")

    def _take_about(self, item: Item) -> None:
        if (self.folder / "set.json").exists():
            self._skip(item, "duplicate", "the set has its set.json already")
            return
        try:
            about = about_fields(json.loads(item.read()))
        except (ValueError, RecursionError) as error:
            raise PictureError("bad_json", f"set.json is not valid JSON ({type(error).__name__})") from error
        write(self.folder / "set.json", json.dumps(about, ensure_ascii=False, indent=2).encode())
        self.report.accepted.append(Accepted(item.name, "set.json"))

    def _take_pairs(self, item: Item) -> None:
        """The pairs of a list under the names that their pictures have in the set. One whose picture is not there is told and left out."""
        rows = pairs.read(item.inner.name, item.read())
        placed = [(row, self._stored(item, row.better), self._stored(item, row.worse)) for row in rows]
        missing = [name for row, better, worse in placed for name, stored in ((row.better, better), (row.worse, worse)) if not stored]
        whole = [pairs.Row(better, worse, row.caption) for row, better, worse in placed if better and worse and better != worse]
        if not whole:
            raise ImageError(
                f"{item.inner.name}: none of its {len(rows)} pairs has both pictures, first missing {(missing or [rows[0].better])[0]!r}; add them"
            )
        pairs.extend(self.folder, whole)
        left = len(rows) - len(whole)
        notes = [f"{len(whole)} pairs"] + ([f"{left} left out: no two pictures of them are in the set, first {(missing or ['twins'])[0]!r}"] if left else [])
        self.report.accepted.append(Accepted(item.name, pairs.FILE, tuple(notes)))

    def _stored(self, item: Item, name: str) -> str:
        """What a picture that a list names, by its path beside the list or by its name alone, is called in the set; empty if it is not there."""
        path = PurePosixPath(name.replace("\\", "/"))
        called = [known for known in self.known if fold(known.name) == fold(path.name)]
        beside = [known for known in called if PurePosixPath(known.home) == PurePosixPath(item.home) / path.parent]
        found = beside or (called if len({known.stored for known in called}) == 1 else [])
        return found[0].stored if found else ""

    def _skip(self, item: Item, code: str, message: str) -> None:
        self.report.skipped.append(Rejected(item.name, code, message))


def is_clutter(name: str) -> bool:
    """Whether a file or folder name is one that systems leave behind, or hidden."""
    return name.startswith(".") or name.lower() in CLUTTER


def write(path: Path, content: bytes) -> None:
    """Put the file there whole or not at all."""
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.part-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def sync(folder: Path) -> None:
    """Make names in the folder survive a power cut, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _is_caption(item: Item) -> bool:
    return item.inner.suffix.lower() in CAPTION_SUFFIXES


def _number(item: Item, known: _Known) -> str:
    """What stands between the picture's name and the suffix of a further caption: `.1` of `cat.1.txt`."""
    own = fold(item.inner.stem)
    return PurePath(own).suffix if own not in (fold(known.name), fold(PurePath(known.name).stem)) else ""


def _is_mask(item: Item) -> bool:
    return is_picture_name(item.inner.name) and (is_mask_name(item.inner.name) or item.inner.parent.name == MASKS)


def mask_target(home: str, inner: PurePath) -> tuple[str, str]:
    """Where the picture of a mask lies, and its folded stem."""
    if is_mask_name(inner.name):
        return home, fold(inner.stem[: -len(ENDING)])
    return f"{home[: -len(str(inner.parent))]}{inner.parent.parent}", fold(inner.stem)


def _clean_copy(content: bytes, found: Decoded, pixels: str) -> tuple[bytes, str]:
    """The bytes to store and their suffix; their pixels are those of `found` exactly, whichever way is taken."""
    if found.format == "JPEG":
        stripped = jpeg.strip(content)
        if stripped and _has_pixels(stripped, pixels):
            return stripped, ".jpg"
    image = found.colour.copy()
    if found.alpha is not None:
        image.putalpha(found.alpha)
    out = io.BytesIO()
    image.info.clear()
    image.save(out, "PNG", compress_level=4)
    return out.getvalue(), ".png"


def _has_pixels(content: bytes, pixels: str) -> bool:
    try:
        return pixel_hash(decode_noted(content).image) == pixels
    except PictureError:
        return False
