"""Image sets as the workspace keeps them."""

from pathlib import Path

import pytest
from PIL import Image

from studio.errors import ImageError, InputError, NotFound
from studio.workspace import Workspace


@pytest.fixture
def studio(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "data")


def pictures(folder: Path, n: int = 3) -> Path:
    folder.mkdir()
    for i in range(n):
        Image.new("RGB", (64, 64), (80 * i, 10, 10)).save(folder / f"p{i}.png")
        (folder / f"p{i}.txt").write_text(f"caption {i}")
    return folder


def test_a_folder_becomes_a_set_with_captions_and_a_second_one_of_that_name_gets_a_number(studio: Workspace, tmp_path: Path) -> None:
    source = pictures(tmp_path / "in")
    report = studio.sets.import_folder("Cats", source, trigger="zqx")
    assert report.set is not None and (report.set.pictures, report.set.captioned, report.set.trigger) == (3, 3, "zqx")
    shown = studio.sets.show("Cats")
    assert [item.caption for item in shown.items] == ["caption 0", "caption 1", "caption 2"]
    again = studio.sets.import_folder("cats", source)
    assert again.set is not None and again.set.name == "cats 2"
    assert oct(studio.layout.root.stat().st_mode)[-3:] == "700"


def test_the_same_picture_twice_is_taken_once_and_named(studio: Workspace, tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 1)
    made = studio.sets.create("One")
    first = studio.sets.add_files(made.id, [("a.png", source / "p0.png")])
    second = studio.sets.add_files(made.id, [("b.png", source / "p0.png")])
    assert (len(first.accepted), len(second.accepted), len(second.skipped)) == (1, 0, 1)
    assert second.skipped[0].name == "b.png" and second.set is not None and second.set.pictures == 1


def test_captions_are_edited_and_emptied(studio: Workspace, tmp_path: Path) -> None:
    id = studio.sets.import_folder("Cats", pictures(tmp_path / "in")).set.id  # type: ignore[union-attr]
    studio.sets.set_caption(id, "p0.png", "  a new one ")
    studio.sets.set_caption(id, "p1.png", " ")
    assert [item.caption for item in studio.sets.show(id).items] == ["a new one", "", "caption 2"]
    assert studio.sets.show(id).captioned == 2
    with pytest.raises(NotFound):
        studio.sets.set_caption(id, "../../studio.db", "x")


def test_deleting_a_picture_and_a_set_can_be_undone(studio: Workspace, tmp_path: Path) -> None:
    id = studio.sets.import_folder("Cats", pictures(tmp_path / "in")).set.id  # type: ignore[union-attr]
    token = studio.sets.remove_picture(id, "p1.png")
    assert [item.name for item in studio.sets.show(id).items] == ["p0.png", "p2.png"]
    assert studio.sets.restore(token).pictures == 3
    assert studio.sets.show(id).items[1].caption == "caption 1"

    token = studio.sets.remove(id)
    with pytest.raises(NotFound):
        studio.sets.show(id)
    studio.sets.create("Cats")
    assert studio.sets.restore(token).name == "Cats 2"
    assert studio.sets.show(id).pictures == 3
    with pytest.raises(NotFound):
        studio.sets.restore(token)


def test_sample_sets_are_listed_and_cannot_be_changed(studio: Workspace) -> None:
    samples = [record for record in studio.sets.list() if record.builtin]
    assert samples and all(record.pictures for record in samples)
    with pytest.raises(InputError, match="ships with the studio"):
        studio.sets.remove(samples[0].id)
    assert not list(studio.layout.sets.iterdir())


def test_a_folder_without_pictures_makes_no_set(studio: Workspace, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "fake.png").write_text("<html>")
    with pytest.raises(ImageError, match="was not made"):
        studio.sets.import_folder("Fake", tmp_path / "in")
    assert not list(studio.layout.sets.iterdir())


def test_thumbnails_are_made_once_and_follow_the_picture(studio: Workspace, tmp_path: Path) -> None:
    id = studio.sets.import_folder("Cats", pictures(tmp_path / "in")).set.id  # type: ignore[union-attr]
    first = studio.sets.thumbnail(id, "p0.png", 60)
    assert first == studio.sets.thumbnail(id, "p0.png", 64) and Image.open(first).size == (64, 64)
    Image.new("RGB", (128, 64)).save(studio.sets.picture_path(id, "p0.png"))
    assert studio.sets.thumbnail(id, "p0.png", 60) != first
