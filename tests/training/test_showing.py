"""Claims about what a run shows: sets, sizes, captions, regularisation."""

from collections import Counter
from pathlib import Path

import pytest

from studio.config import TrainConfig
from studio.config.training.showing import repeats_of
from studio.data.images import Companion, ImageSet, Picture
from studio.errors import SettingsError
from studio.training.showing import captions_of, shown, shuffled, without_trigger


def images(name: str, *captions: str, side: int = 128, trigger: str = "") -> ImageSet:
    pictures = (Picture(f"{name}{i}.png", Path(f"{name}{i}.png"), side, side, f"{name}{i}", caption) for i, caption in enumerate(captions))
    return ImageSet(name, Path(name), trigger, tuple(pictures))


def settle(main: ImageSet, *companions: Companion, **values) -> list:
    config = TrainConfig(images="x", seed=3, **({"resolution": 128} | values))
    return shown(ImageSet(main.name, main.folder, main.trigger, main.pictures, companions=companions), config, 8)


def test_sets_follow_each_other_with_their_repeats_and_triggers():
    found = settle(images("a", "one", trigger="zib"), Companion(images("b", "two", "three", trigger="zab"), repeats=3), repeats=2)
    assert [(one.picture.name, one.captions, one.repeats) for one in found] == [
        ("a0.png", ("zib, one",), 2),
        ("b0.png", ("zab, two",), 6),
        ("b1.png", ("zab, three",), 6),
    ]
    assert settle(images("a", "one"), Companion(images("b", "two")), trigger="t")[1].captions == ("t, two",)


def test_every_picture_is_shown_at_each_size_it_fills():
    found = settle(images("a", "one"), Companion(images("s", "small", side=72)), more_resolutions="64,96")
    assert [(one.picture.name, one.crop.bucket) for one in found] == [
        ("a0.png", (128, 128)),
        ("a0.png", (64, 64)),
        ("a0.png", (96, 96)),
        ("s0.png", (72, 72)),
        ("s0.png", (64, 64)),
    ]


def test_regularisation_pictures_have_no_trigger_and_their_weight():
    regular = Companion(images("r", "a fox", trigger="zab"), regular=True)
    own, kept = settle(images("a", "one"), regular, trigger="zib", prior_weight=0.5)
    assert (own.weight, own.prior, own.captions) == (1.0, False, ("zib, one",))
    assert (kept.weight, kept.prior, kept.captions) == (0.5, False, ("a fox",))
    assert settle(images("a", "one"), regular, prior_prediction=True)[1].prior


def test_prior_prediction_without_regularisation_pictures_takes_your_own_without_the_trigger():
    own, kept = settle(images("a", "zib, one"), trigger="zib", prior_prediction=True)
    assert own.picture is kept.picture and own.captions == ("zib, one",)
    assert kept.prior and kept.captions == ("one",)
    assert settle(images("a", "zib, one"), trigger="zib", prior_prediction=True, prior_caption="a fox")[1].captions == ("a fox",)
    assert without_trigger(("Zib, a cat", "zibo, zib"), "zib") == ("a cat", "zibo")


def test_shuffling_keeps_the_front_and_every_part():
    orders = list(shuffled("zib, a, b, c, d", 200, keep=1, seed=0))
    assert {order.partition(", ")[0] for order in orders} == {"zib"}
    assert all(sorted(order.split(", ")) == ["a", "b", "c", "d", "zib"] for order in orders)
    assert len(set(orders)) == 24
    seconds = Counter(order.split(", ")[1] for order in orders)
    assert all(25 < seconds[part] < 75 for part in "abcd")
    assert orders == list(shuffled("zib, a, b, c, d", 200, keep=1, seed=0)) != list(shuffled("zib, a, b, c, d", 200, keep=1, seed=1))


def test_captions_of_several_lines_are_one_text_or_several():
    picture = Picture("a.png", Path("a.png"), 8, 8, "sha", "one two", ("one", "two"))
    assert captions_of(picture, TrainConfig(images="x"), "t") == ("t, one two",)
    assert captions_of(picture, TrainConfig(images="x", caption_lines="draw"), "t") == ("t, one", "t, two")


def test_repeats_are_read_from_names():
    assert repeats_of(["a", "b=3", "dir/x=y", "dir/x=y=2"]) == {"a": 1, "b": 3, "dir/x=y": 2}
    with pytest.raises(SettingsError, match="shown no time at all"):
        repeats_of(["a=0"])
