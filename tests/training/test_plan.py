"""Claims about what is settled before anything is loaded."""

from pathlib import Path

import pytest

from studio import families
from studio.config import TrainConfig
from studio.data.images import ImageSet, Picture
from studio.errors import ImageError, SettingsError
from studio.families.base import Base
from studio.training import lineage
from studio.training.checkpoint import State, digest
from studio.training.plan import plan
from studio.training.words import with_trigger

BASE = Base("some", "sdxl", "folder", Path("base"), habits={"train": {"resolution": 128, "batch_size": 4, "steps": 300}})


def images(*captions: str, side: int = 128, trigger: str = "") -> ImageSet:
    return ImageSet("set", Path("set"), trigger, tuple(Picture(f"{i}.png", Path(f"{i}.png"), side, side, f"sha{i}", c) for i, c in enumerate(captions)))


def settle(config: TrainConfig | None = None, of: ImageSet | None = None, resumed: State | None = None):
    made = plan(config or TrainConfig(images="x", seed=1), BASE, families.get("sdxl").facts, of or images("a", "b", "c"), resumed)
    if resumed is not None:
        lineage.refuse(made, {}, resumed)
    return made


@pytest.mark.parametrize(
    ("caption", "trigger", "expected"),
    [
        ("a cat", "zib", "zib, a cat"),
        ("a zib cat", "zib", "a zib cat"),
        ("a Zib.", "zib", "a Zib."),
        ("zibo runs", "zib", "zib, zibo runs"),
        ("", "zib", "zib"),
        ("a cat", "", "a cat"),
        ("in (style)", "(style)", "in (style)"),
    ],
)
def test_the_trigger_is_put_in_front_of_captions_that_lack_it(caption, trigger, expected):
    assert with_trigger(caption, trigger) == expected


def test_the_trigger_is_the_setting_or_else_the_set_own():
    assert settle(of=images("a", trigger="own")).captions == ("own, a",)
    assert settle(TrainConfig(images="x", trigger="asked"), images("a", trigger="own")).captions == ("asked, a",)


def test_settings_come_from_the_base_before_the_family():
    config = settle().config
    assert (config.resolution, config.batch_size, config.steps) == (128, 4, 300)
    assert config.rank == families.get("sdxl").facts.defaults["train"]["rank"] == config.alpha


def test_epochs_replace_the_default_steps():
    made = settle(TrainConfig(images="x", epochs=3, repeats=4, gradient_accumulation=2))
    assert made.config.steps is None and made.steps == 5  # 3 epochs of 3 batches, 2 a step


def test_everything_names_each_encoding_that_a_batch_can_ask_for():
    made = settle(TrainConfig(images="x", seed=3, flip=True, caption_dropout=0.5))
    everything = {(w.picture.name, w.mirrored) for w in made.everything()}, {w.caption for w in made.everything()}
    asked = [want for number in range(50) for want, _ in made.batch(number)]
    assert {(w.picture.name, w.mirrored) for w in asked} == everything[0]
    assert {w.caption for w in asked} == everything[1] == {"a", "b", "c", ""}


@pytest.mark.parametrize("values", [{"caption_shuffle": True}, {"tag_dropout": 0.4}])
def test_a_drawn_caption_is_cached_follows_its_key_and_all_come_up(values):
    of = images("zib, a, b, c", "zib, d, e, f")
    made, again = (settle(TrainConfig(images="x", seed=3, caption_dropout=0.2, **values), of) for _ in range(2))
    cached = {want.caption for want in made.everything()}
    asked = [want.caption for number in range(200) for want, _ in made.batch(number)]
    assert set(asked) == cached and "" in cached and len(cached) > 7
    assert asked == [want.caption for number in range(200) for want, _ in again.batch(number)]


def test_more_captions_sets_or_masks_make_another_run_and_plain_runs_keep_their_hash():
    plain = settle(of=images("a", "b"))
    assert plain.images_hash == digest([["0.png", "sha0", "a"], ["1.png", "sha1", "b"]])
    shuffled = settle(TrainConfig(images="x", seed=1, caption_shuffle=True), images("a", "b, c, d, e"))
    assert shuffled.images_hash != settle(of=images("a", "b, c, d, e")).images_hash


def test_a_setting_of_another_kind_of_base_is_refused_before_anything_is_loaded():
    with pytest.raises(SettingsError, match=r"flow_shift 3\.0 is for flow bases"):
        settle(TrainConfig(images="x", flow_shift=3))


def test_small_sets_and_pictures_are_warned_about():
    warnings = settle(of=images("", "", side=100)).warnings
    assert warnings[0] == "2 of 2 pictures have fewer pixels than 128x128 and are trained at their own size: 0.png, 1.png"
    assert "batch_size 4 is more than the 2 pictures" in warnings[1]
    assert "no picture has a caption" in warnings[2]
    assert settle(of=images("a", "b", "c", "d")).warnings == ()


def test_prodigy_takes_rate_one_unless_told_and_optimizers_are_warned_about():
    def told(**values):
        return settle(TrainConfig(images="x", seed=1, **values), images("a", "b", "c", "d"))

    assert told(optimizer="prodigy").config.learning_rate == 1.0 and told(optimizer="prodigy").warnings == ()
    assert "wants learning_rate 1, not 0.0001" in told(optimizer="prodigy", learning_rate=1e-4).warnings[0]
    assert "a third to a tenth" in told(optimizer="lion", learning_rate=1e-4).warnings[0]
    assert "takes the place of a schedule" in told(optimizer="schedule-free", lr_schedule="cosine").warnings[0]
    assert told(optimizer="lion", learning_rate=2e-5).warnings == told(optimizer="schedule-free").warnings == ()


def test_an_option_unknown_to_the_optimizer_is_refused_before_anything_is_loaded():
    with pytest.raises(SettingsError, match="lion has no such option"):
        settle(TrainConfig(images="x", optimizer="lion", optimizer_options="d_coef=1"))


def test_a_set_without_pictures_is_refused():
    with pytest.raises(ImageError, match="no picture"):
        settle(of=images())


def stored(made, **values) -> State:
    return State(step=10, family="sdxl", images=made.images_hash, settings=made.config.model_dump(mode="json") | values)


def test_a_resumed_run_may_change_its_end_but_not_its_way():
    made = settle()
    assert settle(TrainConfig(images="elsewhere", seed=-1, steps=500, save_every=7), resumed=stored(made)).steps == 500
    with pytest.raises(SettingsError, match=r"rank 8 -> 32"):
        settle(resumed=stored(made, rank=8))
    with pytest.raises(SettingsError, match="the pictures or captions"):
        settle(of=images("a", "b", "other"), resumed=stored(made))
    with pytest.raises(SettingsError, match="steps 5 is less than the 10"):
        settle(TrainConfig(images="x", seed=1, steps=5), resumed=stored(made))


def test_a_setting_newer_than_the_checkpoint_had_its_default():
    made = settle()
    state = stored(made)
    settings = {name: value for name, value in state.settings.items() if name != "flip"}
    assert settle(resumed=State(10, "sdxl", made.images_hash, settings)).steps == 300
