"""Claims about masks: which file belongs to which picture, and that a mask goes where its picture goes."""

import pytest
import torch
from PIL import Image

from studio.data.buckets import crop
from studio.data.images import read_set
from studio.data.imports import files_in, import_files
from studio.data.masks import grid
from studio.errors import ImageError


@pytest.fixture
def folder(tmp_path):
    for name in ("cat.png", "dog.png", "owl.png"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / name)
    Image.new("L", (64, 64), 255).save(tmp_path / "cat-masklabel.png")
    (tmp_path / "masks").mkdir()
    Image.new("L", (64, 64), 9).save(tmp_path / "masks" / "dog.png")
    Image.new("L", (64, 64), 9).save(tmp_path / "masks" / "cat.png")
    return tmp_path


def test_masks_are_paired_and_are_no_pictures(folder):
    pictures = read_set(folder).pictures
    assert [picture.name for picture in pictures] == ["cat.png", "dog.png", "owl.png"]
    assert [picture.mask and picture.mask.relative_to(folder).as_posix() for picture in pictures] == ["cat-masklabel.png", "masks/dog.png", None]
    assert len({picture.mask_sha256 for picture in pictures}) == 3


def test_a_mask_is_resized_cut_and_mirrored_with_its_picture(tmp_path):
    """A picture that is its own mask: what the mask says must be the brightness of the cut picture, place by place."""
    size = (200, 100)
    image = Image.new("L", size)
    image.putdata([(x * 7 + y * 3) % 256 for y in range(size[1]) for x in range(size[0])])
    image = image.resize((20, 10), Image.Resampling.BOX).resize(size, Image.Resampling.NEAREST)
    image.save(tmp_path / "a.png")
    cut = crop(size, 64 * 64, 16)
    assert cut.resized != size and (cut.left or cut.top or cut.kept < 1)
    for mirrored in (False, True):
        found = grid(tmp_path / "a.png", tmp_path / "a.png", cut, mirrored, (cut.bucket[1] // 8, cut.bucket[0] // 8))
        own = image.resize(cut.resized, Image.Resampling.BOX).crop((cut.left, cut.top, cut.left + cut.bucket[0], cut.top + cut.bucket[1]))
        expected = torch.tensor(own.get_flattened_data(), dtype=torch.float32).view(1, cut.bucket[1], cut.bucket[0]) / 255
        expected = torch.nn.functional.avg_pool2d(expected.flip(-1) if mirrored else expected, 8)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_transparency_is_a_mask_and_nothing_else_counts_whole(tmp_path):
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 32, 64))
    image.save(tmp_path / "a.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "b.png")
    cut = crop((64, 64), 64 * 64, 16)
    found = grid(tmp_path / "a.png", None, cut, False, (8, 8))
    assert torch.equal(found[0, :, :4], torch.zeros(8, 4)) and torch.equal(found[0, :, 4:], torch.ones(8, 4))
    assert torch.equal(grid(tmp_path / "b.png", None, cut, False, (8, 8)), torch.ones(1, 8, 8))


def test_a_mask_of_another_shape_is_refused_by_name(tmp_path):
    Image.new("L", (100, 64)).save(tmp_path / "m.png")
    with pytest.raises(ImageError, match=r"m\.png: a mask of 100x64 does not fit a picture of 64x64"):
        grid(tmp_path / "a.png", tmp_path / "m.png", crop((64, 64), 64 * 64, 16), False, (8, 8))


def test_an_import_keeps_masks_beside_their_pictures_though_all_look_alike(folder, tmp_path_factory):
    for i, name in enumerate(("cat.png", "dog.png", "owl.png")):
        Image.new("RGB", (64, 64), (40 * i, 9, 9)).save(folder / name)
    target = tmp_path_factory.mktemp("sets") / "set"
    report = import_files(files_in(folder), target)
    assert not report.rejected and report.pictures == 3
    pictures = read_set(target).pictures
    assert [picture.mask.name if picture.mask else "" for picture in pictures] == ["cat-masklabel.png", "dog-masklabel.png", ""]
