"""`python -m studio.demo.sets`: draws the sample image sets that assets/sets ships, the same bytes every time."""

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from studio.demo import mascot
from studio.demo.sprites import FONT_LICENCE, by_name, draw, find_font
from studio.demo.styles import STYLES
from studio.errors import InputError

FOLDER = Path(__file__).parents[2] / "assets" / "sets"
N_COLOURS = 96  # flat pictures: this palette changes no pixel visibly and keeps files near 10 kB


@dataclass(frozen=True)
class About:
    """What set.json says of a set."""

    title: str
    trigger: str
    kind: str
    licence: str
    description: str


STYLE_LICENCE = f"CC0 1.0 for the redrawing; {FONT_LICENCE}"
ABOUT = {
    "blueprint": About("Blueprint", "blueprint style", "style", STYLE_LICENCE, "Washes of blue within bold pale outlines on gridded paper"),
    "woodcut": About("Woodcut", "woodcut style", "style", STYLE_LICENCE, "Black ink and ochre on cream, cut out of a red print"),
    "tilo": About("Tilo", "tilo fox", "character", "CC0 1.0", "A turquoise robot fox with one striped ear, a coral scarf and a lamp in its belly"),
}
SUBJECTS = {
    "blueprint": "owl,sailboat,guitar,castle,octopus,cup of coffee,red apple,mushroom,penguin,steam train,elephant,key,"
    "helicopter,snail,hourglass,fish,teapot,umbrella,car,trophy",
    "woodcut": "fox,sailboat,pineapple,dragon,teapot,rooster,violin,turtle,house,rocket,elephant,cactus,bell,top hat,whale,sunflower,lion,anchor,camel,pear",
}


@dataclass(frozen=True)
class Sample:
    """A picture of a set with its caption."""

    name: str
    caption: str
    image: Image.Image


def samples(name: str, font: Path | None = None) -> Iterator[Sample]:
    """The pictures of a set in order. Styles need the emoji font, the character does not."""
    if name == "tilo":
        for n, scene in enumerate(mascot.SCENES, 1):
            yield Sample(f"{n:02d}-tilo", scene.caption, mascot.draw(scene))
        return
    if name not in STYLES:
        raise InputError(f"no sample set is called {name!r}; there are {', '.join(ABOUT)}")
    for n, subject in enumerate(SUBJECTS[name].split(","), 1):
        sprite = draw(by_name(subject), find_font(font))
        yield Sample(f"{n:02d}-{subject.replace(' ', '-')}", f"{subject}, {ABOUT[name].trigger}", STYLES[name](sprite))


def write_set(name: str, folder: Path, font: Path | None = None) -> None:
    """Put pictures, captions and set.json of one set into `folder`, in place of what it holds."""
    found = list(samples(name, font))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for sample in found:
        palette = sample.image.quantize(N_COLOURS, dither=Image.Dither.NONE)
        palette.save(folder / f"{sample.name}.png", optimize=True)
        (folder / f"{sample.name}.txt").write_text(sample.caption + "\n", encoding="utf-8")
    (folder / "set.json").write_text(json.dumps(asdict(ABOUT[name]), indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studio.demo.sets", description=__doc__)
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"which of {', '.join(ABOUT)}; all if none is named")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the sets (default: %(default)s)")
    parser.add_argument("--font", type=Path, help="NotoColorEmoji.ttf, if it is not where systems put it")
    given = parser.parse_args()
    try:
        for name in given.sets or ABOUT:
            write_set(name, given.out / name, given.font)
            print(f"{name}: {len(list((given.out / name).glob('*.png')))} pictures in {given.out / name}")
    except InputError as error:
        parser.exit(error.exit_code, f"error: {error}\n")


if __name__ == "__main__":
    main()
