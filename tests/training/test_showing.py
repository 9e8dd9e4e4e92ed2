"""Claims about what a run shows: sets, sizes, captions, regularisation."""

from collections import Counter
from pathlib import Path

import pytest

from studio.config import TrainConfig
from studio.config.training.showing import repeats_of
from studio.data.images import Companion, ImageSet, Picture
from studio.errors import SettingsError
from studio.training.showing import captions_of, shown, varied, without_trigger


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


def forms(caption: str, n: int = 200, **values) -> list[str]:
    return list(varied(caption, TrainConfig(images="x", caption_variants=n, **({"seed": 0} | values))))


def test_shuffling_keeps_the_front_and_every_part():
    orders = forms("zib, a, b, c, d", caption_shuffle=True)
    assert {order.partition(", ")[0] for order in orders} == {"zib"}
    assert all(sorted(order.split(", ")) == ["a", "b", "c", "d", "zib"] for order in orders)
    assert len(set(orders)) == 24
    seconds = Counter(order.split(", ")[1] for order in orders)
    assert all(25 < seconds[part] < 75 for part in "abcd")
    assert orders == forms("zib, a, b, c, d", caption_shuffle=True) != forms("zib, a, b, c, d", caption_shuffle=True, seed=1)


def test_tag_dropout_leaves_out_each_part_by_itself_and_never_what_is_kept():
    """Each part is there in about 70 % of 1000 forms, any two of them in about 49 %; order and front stay."""
    found = [form.split(", ") for form in forms("zib, a, b, c", 1000, tag_dropout=0.3)]
    assert all(form[0] == "zib" and form == [part for part in ["zib", "a", "b", "c"] if part in form] for form in found)
    assert all(650 < sum(part in form for form in found) < 750 for part in "abc")
    assert all(430 < sum(one in form and two in form for form in found) < 550 for one, two in ("ab", "bc", "ac"))
    orders = forms("zib, a, b, c", 200, tag_dropout=0.3, caption_shuffle=True)
    assert {"zib, c, a", "zib, b, a, c"} <= set(orders) and all(order.startswith("zib") for order in orders)
    assert forms("zib, a, b", 50, tag_dropout=0.9, keep_tokens=3) == ["zib, a, b"] * 50


def test_a_separator_says_what_is_kept_and_is_never_read_out():
    values = {"caption_shuffle": True, "keep_separator": "|||"}
    orders = forms("zib, a fox ||| c, d, e", **values)
    assert {order[: len("zib, a fox, ")] for order in orders} == {"zib, a fox, "} and len(set(orders)) == 6
    assert set(forms("a, b", 50, **values)) == {"a, b"}, "without the sign keep_tokens counts"
    picture = Picture("a.png", Path("a.png"), 8, 8, "sha", "a fox ||| c, d")
    assert captions_of(picture, TrainConfig(images="x", keep_separator="|||"), "zib") == ("zib, a fox, c, d",)
    kept = settle(images("a", "zib, a fox ||| c"), trigger="zib", prior_prediction=True, keep_separator="|||")[1]
    assert kept.captions == ("a fox, c",)
    assert captions_of(picture, TrainConfig(images="x"), "") == ("a fox ||| c, d",), "a sign that nobody named is text"


def test_a_held_out_picture_is_judged_under_its_whole_caption():
    [one] = settle(images("a", "zib, a, b, c"), tag_dropout=0.9, caption_variants=4)
    assert one.whole == "zib, a, b, c" and settle(images("a", "zib, a"))[0].whole == ""


def test_captions_of_several_lines_are_one_text_or_several():
    picture = Picture("a.png", Path("a.png"), 8, 8, "sha", "one two", ("one", "two"))
    assert captions_of(picture, TrainConfig(images="x"), "t") == ("t, one two",)
    assert captions_of(picture, TrainConfig(images="x", caption_lines="draw"), "t") == ("t, one", "t, two")


def test_repeats_are_read_from_names():
    assert repeats_of(["a", "b=3", "dir/x=y", "dir/x=y=2"]) == {"a": 1, "b": 3, "dir/x=y": 2}
    with pytest.raises(SettingsError, match="shown no time at all"):
        repeats_of(["a=0"])
