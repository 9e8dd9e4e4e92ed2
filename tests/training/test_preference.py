"""Claims about preference training: the closed form, the pairs, and that the better pictures gain."""

import math
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageDraw

from studio.data.images import read_set
from studio.data.imports import files_in, import_files
from studio.data.pairs import add, pairs_of
from studio.errors import ImageError, SettingsError
from studio.training.preference import preference_loss

from .test_loop import told


def number(*values: float) -> list[torch.Tensor]:
    return [torch.tensor([value], dtype=torch.float64) for value in values]


def test_the_loss_is_that_of_the_paper():
    """L = -log sigmoid(-beta / 2 ((e_w - e_w_ref) - (e_l - e_l_ref))); by hand for gains of 0.01 and 0.03."""
    found = preference_loss(*number(0.30, 0.53, 0.31, 0.50), beta=100.0)
    assert found.item() == pytest.approx(-math.log(1 / (1 + math.exp(-50 * (0.01 + 0.03)))))
    assert preference_loss(*number(0.4, 0.7, 0.4, 0.7), beta=5000.0).item() == pytest.approx(math.log(2))


def test_its_gradient_pulls_the_better_and_pushes_the_worse_alike():
    """d L / d e_w = beta / 2 sigmoid(beta / 2 gained), and the negative of it for the worse one."""
    better, worse, base_better, base_worse = number(0.4, 0.5, 0.45, 0.5)
    better.requires_grad_(), worse.requires_grad_()
    preference_loss(better, worse, base_better, base_worse, 20.0).backward()
    assert better.grad is not None and worse.grad is not None
    expected = 10.0 / (1 + math.exp(-10.0 * ((0.4 - 0.5) - (0.45 - 0.5))))
    assert better.grad.item() == pytest.approx(expected) == pytest.approx(-worse.grad.item())


@pytest.fixture(scope="module")
def pairs(studio, tmp_path_factory):
    """Yellow discs are better, blue squares are worse."""
    folder = tmp_path_factory.mktemp("pairs")
    for i in range(3):
        for name, colour in (("better", (250, 240, 30 * i)), ("worse", (30, 40, 200))):
            image = Image.new("RGB", (64, 64), (40 * i, 120, 200))
            draw = ImageDraw.Draw(image)
            (draw.ellipse if name == "better" else draw.rectangle)((10 + i, 8, 44, 44), fill=colour)
            image.save(folder / f"{i}-{name}.png")
        (folder / f"{i}-better.txt").write_text("a shape")
    return replace(studio, images=read_set(folder))


@pytest.mark.parametrize("base", ["demo-sdxl", "demo-flux"])
def test_preference_is_learned_from_log_2_down_and_resumes_to_the_bit(pairs, tmp_path, base):
    values = {"preference_beta": 500.0, "batch_size": 3, "steps": 6, "learning_rate": 5e-3, "save_every": 4, "flip": True}
    steps = told(pairs.run(pairs.config(base, **values), tmp_path / "a"))
    losses = [step[1] for step in steps]
    assert losses[0] == pytest.approx(math.log(2), rel=1e-3)
    assert min(losses[3:]) < 0.9 * math.log(2)
    start = str(tmp_path / "a" / "checkpoints" / "step-000004")
    assert told(pairs.run(pairs.config(base, **values, start_from=start), tmp_path / "b")) == steps[4:]


def test_pairs_are_named_or_listed(pairs, tmp_path):
    named = [(better.name, worse.name) for better, worse in pairs_of(pairs.images)]
    assert named == [(f"{i}-better.png", f"{i}-worse.png") for i in range(3)]
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    assert [add(tmp_path, "a.png", "b.png"), add(tmp_path, "c.png", "a.png"), add(tmp_path, "b.png", "a.png")] == [1, 2, 2]
    assert [(better.name, worse.name) for better, worse in pairs_of(read_set(tmp_path))] == [("c.png", "a.png"), ("b.png", "a.png")]


def test_what_is_no_pair_is_told_with_the_way_out(pairs, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "x-better.png")
    with pytest.raises(ImageError, match=r"x-better\.png: there is no x-worse beside it"):
        pairs_of(read_set(tmp_path))
    Image.new("RGB", (64, 80)).save(tmp_path / "x-worse.png")
    with pytest.raises(ImageError, match="must have one size"):
        pairs_of(read_set(tmp_path))
    (tmp_path / "pairs.json").write_text('[{"better": "x-better.png", "worse": "y.png"}]')
    with pytest.raises(ImageError, match=r"names 'y\.png', which is no picture of the set"):
        pairs_of(read_set(tmp_path))
    (tmp_path / "pairs.json").write_text("[1]")
    with pytest.raises(ImageError, match="is no list of pairs"):
        pairs_of(read_set(tmp_path))
    with pytest.raises(SettingsError, match="leave masked_loss out"):
        list(pairs.run(pairs.config(preference_beta=100, masked_loss=True), tmp_path / "run"))
    with pytest.raises(ValueError, match="min_snr_gamma means nothing to preference_beta"):
        pairs.config(preference_beta=100, min_snr_gamma=5)


@pytest.mark.parametrize(
    "content",
    [
        "better,worse,caption\na.png,b.png,a red wall\nc.png,a.png,\n",
        "prompt;chosen;rejected\r\na red wall;a.png;b.png\r\n;c.png;a.png\r\n",
        "\ufeffa.png\tb.png\ta red  wall\n\nc.png\ta.png\n",
        '"better","worse","caption"\n"a.png","b.png","a red\nwall"\n"c.png","a.png",""\n',
    ],
    ids=["commas", "other names, semicolons", "tabs, no heading, a mark", "quoted, two lines"],
)
def test_a_table_of_pairs_is_read_as_people_write_it(tmp_path, content):
    for name in "abc":
        Image.new("RGB", (64, 64), "red").save(tmp_path / f"{name}.png")
    (tmp_path / "c.txt").write_text("its own")
    (tmp_path / "pairs.csv").write_bytes(content.encode())
    found = pairs_of(read_set(tmp_path))
    assert [(better.name, worse.name, better.caption) for better, worse in found] == [("a.png", "b.png", "a red wall"), ("c.png", "a.png", "its own")]
    assert add(tmp_path, "b.png", "a.png") == 2, "a pair that is added turns the table into the list of the studio"
    assert [better.name for better, _ in pairs_of(read_set(tmp_path))] == ["c.png", "b.png"]


def test_an_import_keeps_the_pairs_under_the_names_that_pictures_get(tmp_path):
    folder = tmp_path / "from"
    (folder / "pictures").mkdir(parents=True)
    for number, name in enumerate(("a b.png", "B.png", "ü.png", "d.png")):
        Image.new("RGB", (64, 64), (40 * number, 9, 9)).save(folder / "pictures" / name)
    shutil.copy(folder / "pictures" / "B.png", folder / "pictures" / "twin.png")
    rows = ["pictures/a b.png,pictures/B.png,two walls", "ü.png,pictures/twin.png,", "gone.png,d.png,", "pictures/B.png,pictures/twin.png,"]
    (folder / "pairs.csv").write_text("better,worse,caption\n" + "\n".join(rows), encoding="utf-8")
    for source in (files_in(folder), [("all", folder)]):
        target = tmp_path / f"set{len(list(tmp_path.iterdir()))}"
        report = import_files(source, target)
        [lists] = [item for item in report.accepted if item.stored == "pairs.json"]
        assert lists.notes == ("2 pairs", "2 left out: no two pictures of them are in the set, first 'gone.png'") and not report.rejected
        images = read_set(target)
        found = [(better.width, better.caption, worse.name in {one.name for one in images.pictures}) for better, worse in pairs_of(images)]
        assert found == [(64, "two walls", True), (64, "", True)]
        assert len({name for better, worse in pairs_of(images) for name in (better.name, worse.name)}) == 3, "twins are one picture"


def test_a_list_of_pairs_that_is_none_is_rejected_by_name_and_the_pictures_are_taken(tmp_path):
    folder = tmp_path / "from"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    for name, content, message in (
        ("pairs.json", "[1]", "pairs.json: is no list of pairs"),
        ("pairs.csv", "better,worse\na.png\n", "pairs.csv: line 2 is no pair"),
        ("PAIRS.CSV", "a.png,gone.png\n", "PAIRS.CSV: none of its 1 pairs has both pictures, first missing 'gone.png'"),
    ):
        (folder / name).write_text(content)
        report = import_files(files_in(folder), tmp_path / f"set-{name}")
        assert [(item.code, item.message.startswith(message)) for item in report.rejected] == [("bad_pairs", True)], report.rejected
        assert report.pictures == 1
        (folder / name).unlink()


def test_pairs_by_name_survive_an_import_that_finds_twins_among_them(tmp_path):
    folder = tmp_path / "from"
    folder.mkdir()
    for name, level in (("x-better", 10), ("x-worse", 20), ("y-better", 10), ("y-worse", 30)):
        Image.new("RGB", (64, 64), (level, 9, 9)).save(folder / f"{name}.png")
    import_files(files_in(folder), tmp_path / "set")
    assert [(better.name, worse.name) for better, worse in pairs_of(read_set(tmp_path / "set"))] == [
        ("x-better.png", "x-worse.png"),
        ("x-better.png", "y-worse.png"),
    ]
    (folder / "y-better.png").unlink()
    import_files(files_in(folder), tmp_path / "plain")
    assert not (tmp_path / "plain" / "pairs.json").exists(), "names say enough"
