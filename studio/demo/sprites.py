"""Emoji as pictures with names: what the demo bases are trained on, and what the sample styles redraw.

The pictures come from the font Noto Color Emoji (SIL Open Font License 1.1), the names from the Unicode character names, both
chosen and simplified in emoji.tsv: one row for every thing that is recognisable at 128 pixels.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from studio.errors import InputError

FONT_LICENCE = "drawn from the font Noto Color Emoji, copyright Google LLC, SIL Open Font License 1.1"
FONT_PLACES = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",
)
STRIKE = 109  # the one size at which the font holds bitmaps
CELL = 136  # pixels of those bitmaps


@dataclass(frozen=True)
class Emoji:
    """A thing that can be drawn. `article` is "a", "an" or nothing, as its name needs it in a caption."""

    character: str
    name: str
    alias: str
    article: str

    def with_article(self, adjective: str = "") -> str:
        if adjective and self.article:
            return f"a {adjective} {self.name}"
        return f"{self.article} {self.name}".strip()


@cache
def emojis() -> tuple[Emoji, ...]:
    """Every thing of emoji.tsv, in the order of code points."""
    with Path(__file__).with_name("emoji.tsv").open(encoding="utf-8", newline="") as file:
        return tuple(Emoji(chr(int(row["codepoint"], 16)), row["name"], row["alias"], row["article"]) for row in csv.DictReader(file, delimiter="\t"))


def by_name(name: str) -> Emoji:
    """The thing of that name. Raises InputError if there is none."""
    found = next((emoji for emoji in emojis() if emoji.name == name), None)
    if found is None:
        raise InputError(f"no emoji is called {name!r}; emoji.tsv lists all of them")
    return found


def find_font(given: Path | None = None, places: Iterable[str] = FONT_PLACES) -> Path:
    """The emoji font's file. Raises InputError with the way out."""
    for path in [given] if given else [Path(place) for place in places]:
        if path.is_file():
            return path
    raise InputError(f"font {given or 'Noto Color Emoji'} was not found; install it (fonts-noto-color-emoji) or name the file with --font")


def draw(emoji: Emoji, font: Path) -> Image.Image:
    """The font's own bitmap of a thing, RGBA, 136 pixels square."""
    image = Image.new("RGBA", (CELL, CELL), (0, 0, 0, 0))
    ImageDraw.Draw(image).text((0, 4), emoji.character, font=ImageFont.truetype(str(font), STRIKE), embedded_color=True)
    return image
