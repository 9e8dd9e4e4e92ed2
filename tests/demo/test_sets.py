from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from studio.data.images import decode, read_set
from studio.demo import mascot
from studio.demo.sets import ABOUT, FOLDER, samples, write_set
from studio.demo.sprites import FONT_PLACES, by_name, draw, find_font
from studio.demo.styles import STYLES
from studio.errors import InputError

needs_font = pytest.mark.skipif(not any(Path(place).is_file() for place in FONT_PLACES), reason="the font Noto Color Emoji is not installed")


def shipped() -> Iterator[str]:
    return (path.name for path in sorted(FOLDER.iterdir()) if path.is_dir())


def test_the_shipped_sets_are_the_ones_that_the_script_knows():
    assert set(shipped()) == set(ABOUT)


@pytest.mark.parametrize("name", ABOUT)
def test_every_shipped_set_is_complete_small_and_captioned(name):
    found = read_set(FOLDER / name)
    assert 12 <= len(found.pictures) <= 24
    assert len({p.sha256 for p in found.pictures}) == len({p.caption for p in found.pictures}) == len(found.pictures)
    assert all((p.width, p.height) == (256, 256) and found.trigger in p.caption for p in found.pictures)
    assert found.title and found.kind in ("style", "character") and "CC0" in found.licence
    assert found.kind != "style" or "SIL Open Font License" in found.licence
    assert sum(file.stat().st_size for file in (FOLDER / name).iterdir()) < 1.3 * 2**20


def test_the_character_is_drawn_again_as_shipped(tmp_path):
    write_set("tilo", tmp_path / "tilo")
    for p in read_set(FOLDER / "tilo").pictures:
        assert np.array_equal(np.asarray(decode(tmp_path / "tilo" / p.name)), np.asarray(decode(p.path))), p.name


def test_the_character_has_its_colours_in_every_scene():
    for scene in mascot.SCENES:
        pixels = np.asarray(mascot.draw(scene), int)
        for colour, share in ((mascot.FUR, 0.05), (mascot.CREAM, 0.02), (mascot.CORAL, 0.004), (mascot.AMBER, 0.002)):
            assert (np.abs(pixels - colour).max(-1) < 12).mean() > share, (scene.caption, colour)


@needs_font
@pytest.mark.parametrize("name", STYLES)
def test_styles_are_the_same_every_time_and_unlike_each_other(name):
    sprite = draw(by_name("owl"), find_font())
    one, two = (np.asarray(STYLES[name](sprite), float) for _ in range(2))
    assert np.array_equal(one, two)
    others = [np.asarray(style(sprite), float) for other, style in STYLES.items() if other != name]
    assert all(np.abs(one - other).mean() > 40 for other in others)


def test_an_unknown_set_is_refused():
    with pytest.raises(InputError, match="there are blueprint, woodcut, tilo"):
        list(samples("none"))
