"""Pairs of pictures of which one is better, for preference training.

A folder of pairs is an image set. Its `pairs.json` lists `{"better": NAME, "worse": NAME}`, or its `pairs.csv` has the columns
better and worse; without either, `NAME-better.png` and `NAME-worse.png` are a pair. What the pair shows is told by the caption of the
better one, or where it has none by the column caption.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from studio.data.captions import MAX_CAPTION_BYTES, decode_text, fold
from studio.data.images import ImageSet, Picture
from studio.errors import ImageError

FILE, TABLE = "pairs.json", "pairs.csv"
BETTER, WORSE = "-better", "-worse"
MAX_BYTES = MAX_CAPTION_BYTES * 64
COLUMNS = {"better": "better", "chosen": "better", "worse": "worse", "rejected": "worse", "caption": "caption", "prompt": "caption"}  # as others say it

Pair = tuple[Picture, Picture]


@dataclass(frozen=True)
class Row:
    """One line of a list of pairs: names of pictures as the list has them, and what they show where it says so."""

    better: str
    worse: str
    caption: str = ""


def pairs_of(images: ImageSet) -> tuple[Pair, ...]:
    """(better, worse), in the order of the file or of the names. Raises ImageError with the way out where there are none or they do not match."""
    path = next((images.folder / name for name in (FILE, TABLE) if (images.folder / name).is_file()), None)
    pairs = _listed(images, path) if path else _named(images)
    if not pairs:
        raise ImageError(f"image set {images.name}: holds no pairs; list them in {FILE} or {TABLE}, or name the pictures NAME{BETTER}.png and NAME{WORSE}.png")
    for better, worse in pairs:
        if (better.width, better.height) != (worse.width, worse.height):
            raise ImageError(
                f"{better.name} and {worse.name}: {better.width}x{better.height} and {worse.width}x{worse.height}; a pair must have one size, crop them alike"
            )
    return pairs


def is_list(name: str) -> bool:
    """Whether a file of this name lists pairs."""
    return name.lower() in (FILE, TABLE)


def read(name: str, content: bytes) -> list[Row]:
    """The rows of a list of pairs. Raises ImageError where it is none."""
    if len(content) > MAX_BYTES:
        raise ImageError(f"{name}: a list of pairs has at most {MAX_BYTES:,} bytes, this one has {len(content):,}; split the set")
    return _table(name, content) if name.lower().endswith(".csv") else _json(name, content)


def add(folder: Path, better: str, worse: str) -> int:
    """Write one more pair of the set's pictures into its list; how many there are now. The same pair again, or turned round, replaces it."""
    return extend(folder, [Row(better, worse)])


def extend(folder: Path, new: Sequence[Row]) -> int:
    """Write more pairs of the set's pictures into its list; how many there are now. One that is there, or turned round, is replaced."""
    path = next((folder / name for name in (FILE, TABLE) if (folder / name).is_file()), None)
    rows = read(path.name, path.read_bytes()) if path else []
    for one in new:
        rows = [*(row for row in rows if {row.better, row.worse} != {one.better, one.worse}), one]
    listed = [{"better": row.better, "worse": row.worse} | ({"caption": row.caption} if row.caption else {}) for row in rows]
    part = folder / f".{FILE}.part"
    part.write_text(json.dumps(listed, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / FILE)
    return len(rows)


def _listed(images: ImageSet, path: Path) -> tuple[Pair, ...]:
    by_name = {picture.name: picture for picture in images.pictures}
    rows = read(path.name, path.read_bytes())
    missing = next((name for row in rows for name in (row.better, row.worse) if name not in by_name), None)
    if missing:
        raise ImageError(f"image set {images.name}: {path.name} names {missing!r}, which is no picture of the set; add it or take the pair out")
    return tuple((_told(by_name[row.better], row.caption), by_name[row.worse]) for row in rows)


def _told(picture: Picture, caption: str) -> Picture:
    return picture if picture.caption or not caption else replace(picture, caption=caption)


def _json(name: str, content: bytes) -> list[Row]:
    try:
        return [Row(str(row["better"]), str(row["worse"]), str(row.get("caption", ""))) for row in json.loads(content)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ImageError(f'{name}: is no list of pairs ({type(error).__name__}); it looks like [{{"better": "a.png", "worse": "b.png"}}]') from error


def _table(name: str, content: bytes) -> list[Row]:
    """Lines of a CSV file: by the names of its columns, or without a heading the better picture first. Commas, semicolons or tabs."""
    text = decode_text(content)
    first = text.partition("\n")[0]
    sign = max(",;\t", key=first.count)
    lines = [[" ".join(cell.split()) for cell in line] for line in csv.reader(io.StringIO(text, newline=""), delimiter=sign)]
    lines = [line for line in lines if any(line)]
    heading = [COLUMNS.get(cell.lower(), "") for cell in lines[0]] if lines else []
    named = {"better", "worse"} <= set(heading)
    columns = heading if named else ["better", "worse", "caption"]
    found = [Row(**{column: cell for column, cell in zip(columns, line, strict=False) if column}) for line in lines[named:] if len(line) > 1]
    broken = next((number for number, line in enumerate(lines[named:], start=1 + named) if len(line) < 2), None)
    if broken or not found:
        raise ImageError(f"{name}: line {broken or 1} is no pair; it has the columns better and worse, as in: a.png,b.png")
    return found


def _named(images: ImageSet) -> tuple[Pair, ...]:
    by_stem = {fold(PurePath(picture.name).stem): picture for picture in images.pictures}
    found = []
    for stem, picture in by_stem.items():
        if stem.endswith(BETTER):
            other = by_stem.get(stem.removesuffix(BETTER) + WORSE)
            if other is None:
                raise ImageError(
                    f"{picture.name}: there is no {PurePath(picture.name).stem.removesuffix(BETTER)}{WORSE} beside it; add it or rename the picture"
                )
            found.append((picture, other))
    return tuple(found)
