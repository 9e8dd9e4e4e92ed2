"""Pairs of pictures of which one is better, for preference training.

A folder of pairs is an image set. Its `pairs.json` lists `{"better": NAME, "worse": NAME}`; without one, `NAME-better.png` and
`NAME-worse.png` are a pair. What the pair shows is told by the caption of the better one.
"""

import json
from collections.abc import Sequence
from pathlib import Path, PurePath

from studio.data.captions import MAX_CAPTION_BYTES, fold
from studio.data.images import ImageSet, Picture
from studio.errors import ImageError

FILE = "pairs.json"
BETTER, WORSE = "-better", "-worse"

Pair = tuple[Picture, Picture]


def pairs_of(images: ImageSet) -> tuple[Pair, ...]:
    """(better, worse), in the order of the file or of the names. Raises ImageError with the way out where there are none or they do not match."""
    path = images.folder / FILE
    pairs = _listed(images, path) if path.is_file() else _named(images)
    if not pairs:
        raise ImageError(f"image set {images.name}: holds no pairs; list them in {FILE}, or name the pictures NAME{BETTER}.png and NAME{WORSE}.png")
    for better, worse in pairs:
        if (better.width, better.height) != (worse.width, worse.height):
            raise ImageError(
                f"{better.name} and {worse.name}: {better.width}x{better.height} and {worse.width}x{worse.height}; a pair must have one size, crop them alike"
            )
    return pairs


def add(folder: Path, better: str, worse: str) -> int:
    """Write one more pair of the set's pictures into its file; how many there are now. The same pair again, or turned round, replaces it."""
    rows = [row for row in _rows(folder / FILE) if {row[0], row[1]} != {better, worse}] if (folder / FILE).is_file() else []
    rows.append((better, worse))
    content = json.dumps([{"better": one, "worse": other} for one, other in rows], ensure_ascii=False, indent=1)
    part = folder / f".{FILE}.part"
    part.write_text(content + "\n", encoding="utf-8")
    part.replace(folder / FILE)
    return len(rows)


def _listed(images: ImageSet, path: Path) -> tuple[Pair, ...]:
    by_name = {picture.name: picture for picture in images.pictures}
    rows = _rows(path)
    missing = next((name for row in rows for name in row if name not in by_name), None)
    if missing:
        raise ImageError(f"image set {images.name}: {FILE} names {missing!r}, which is no picture of the set; add it or take the pair out")
    return tuple((by_name[better], by_name[worse]) for better, worse in rows)


def _rows(path: Path) -> Sequence[tuple[str, str]]:
    try:
        found = json.loads(path.read_bytes()[: MAX_CAPTION_BYTES * 64])
        return [(str(row["better"]), str(row["worse"])) for row in found]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ImageError(f'{path}: is no list of pairs ({type(error).__name__}); it looks like [{{"better": "a.png", "worse": "b.png"}}]') from error


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
