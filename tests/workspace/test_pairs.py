"""Claims about pairs picked in the gallery: both pictures land in one set, and training finds the pair."""

from pathlib import Path

import pytest
from PIL import Image

from studio.data.images import read_set
from studio.data.pairs import pairs_of
from studio.errors import InputError
from studio.library.database import Database
from studio.library.models import ImageRow
from studio.workspace import Workspace


@pytest.fixture
def studio(tmp_path: Path) -> Workspace:
    """A gallery of three pictures of one size, two of them alike, and one of another size."""
    opened = Workspace.open(tmp_path / "data")
    day = opened.layout.images / "2026-01-01"
    day.mkdir(parents=True)
    for name, size, colour in (("a", 64, "red"), ("b", 64, "blue"), ("c", 64, "red"), ("large", 96, "red")):
        Image.new("RGB", (size, size), colour).save(day / f"{name}.png")
        db: Database = opened._db
        with db.write() as session:
            path = f"images/2026-01-01/{name}.png"
            row = ImageRow(id=name, job="j", path=path, source=path, width=size, height=size, seed=1, prompt=f"a {colour} wall", created=1.0, settings={})
            session.add(row)
    return opened


def test_a_pair_becomes_a_set_that_training_can_read(studio: Workspace) -> None:
    kept = studio.pairs.add("a", "b")
    assert (kept.set.name, kept.set.pictures, kept.pairs) == ("preferences", 2, 1)
    found = read_set(studio.sets.resolve("preferences").folder)
    assert [(better.name, worse.name, better.caption) for better, worse in pairs_of(found)] == [("a.png", "b.png", "a red wall")]


def test_another_opinion_replaces_the_first(studio: Workspace) -> None:
    studio.pairs.add("a", "b", "mine")
    assert studio.pairs.add("b", "a", "mine").pairs == 1
    found = read_set(studio.sets.resolve("mine").folder)
    assert [(better.name, worse.name) for better, worse in pairs_of(found)] == [("b.png", "a.png")]


def test_what_is_no_pair_is_refused_and_nothing_is_made(studio: Workspace) -> None:
    with pytest.raises(InputError, match="better than itself"):
        studio.pairs.add("a", "a")
    with pytest.raises(InputError, match="must have one size"):
        studio.pairs.add("a", "large")
    assert "preferences" not in [one.name for one in studio.sets.list()]
    with pytest.raises(InputError, match="point for point"):
        studio.pairs.add("a", "c")
