"""Claims about held-out pictures: which they are, what is measured, that training does not feel it, and what follows from it."""

import math
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from studio.errors import SettingsError
from studio.training import checkpoint, holdout, validation
from studio.training.run import Run
from studio.training.validation import LEVELS, Watch, interval

from .conftest import Asked
from .test_loop import BASES, assert_same, outcome, told

HELD = {"validation_fraction": 0.4, "validation_every": 1}
SCRIPT = [0.9, 0.5, 0.4, 0.45, 0.41, 0.42, 0.3]


def held_names(events) -> set[str]:
    return set(next(e for e in events if e.kind == "validation").by_picture)


def test_the_share_is_chosen_by_content_and_not_by_order_or_name():
    hashes = [f"sha{i}" for i in range(20)]
    held = {hashes[i] for i in holdout.chosen(hashes, 0.25)}
    assert len(held) == 5
    turned = hashes[::-1]
    assert {turned[i] for i in holdout.chosen(turned, 0.25)} == held
    assert {hashes[i] for i in holdout.chosen(hashes, 0.5)} > held  # a larger share keeps the smaller one
    assert holdout.chosen(hashes, 0.0) == frozenset() and len(holdout.chosen(hashes, 1e-9)) == 1


def test_copies_of_a_picture_are_never_on_both_sides():
    hashes = ["a", "b", "a", "c", "b", "d", "d", "e"]
    for fraction in (0.1, 0.3, 0.5):
        held = holdout.chosen(hashes, fraction)
        assert {hashes[i] for i in held}.isdisjoint({hashes[i] for i in range(len(hashes)) if i not in held})


def test_holding_out_everything_is_refused():
    with pytest.raises(SettingsError, match="leaves none to train on"):
        holdout.chosen(["a"], 0.5)


def test_patience_without_held_out_pictures_is_refused(studio):
    with pytest.raises(ValueError, match="early_stop needs held-out pictures"):
        studio.config(early_stop=3)


def test_the_interval_is_that_of_the_mean():
    """For many values the bootstrap agrees with the normal theory: 1.96 standard errors to each side."""
    values = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    low, high = interval(values) or (math.nan, math.nan)
    error = float(values.std()) / 20
    assert low == pytest.approx(float(values.mean()) - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(float(values.mean()) + 1.96 * error, abs=0.15 * error)
    assert interval(values) == (low, high) and interval(values[:1]) is None


def test_the_watch_counts_looks_since_the_best():
    watch = Watch()
    told_best = [watch.judge(step, loss, counts=True) for step, loss in enumerate([0.5, 0.4, 0.45, 0.4, float("nan"), 0.39], start=1)]
    assert told_best == [True, True, False, False, False, True]
    assert (watch.best_step, watch.best_loss, watch.stale) == (6, 0.39, 0)
    again = Watch()
    watch.judge(7, 0.9, counts=True)
    again.restore(watch.tensors(), watch.entries())
    assert again == watch and again.stale == 1


@pytest.mark.usefixtures("few_levels")
@pytest.mark.parametrize("base", BASES)
def test_validation_changes_no_bit_of_the_training(studio, tmp_path, base):
    """The same pictures are trained on: looks at every step against one at the end, with everything on that draws."""
    values = {"validation_fraction": 0.4, "flip": True, "caption_dropout": 0.4, "steps": 3, "base": base, "keep_best": False, "gradient_accumulation": 2}
    often = list(studio.run(studio.config(**values, validation_every=1), tmp_path / "often"))
    never = list(studio.run(studio.config(**values, validation_every=1000), tmp_path / "never"))
    assert told(often) == told(never)
    assert len([e for e in often if e.kind == "validation"]) == 4 and len([e for e in never if e.kind == "validation"]) == 2
    one, two = outcome(tmp_path / "often", 3), outcome(tmp_path / "never", 3)
    for ours, theirs in zip(one[:2], two[:2], strict=True):
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.usefixtures("few_levels")
def test_what_is_held_out_is_never_trained_on(studio, tmp_path, of_kind):
    events = list(studio.run(studio.config(**HELD, steps=1), tmp_path))
    facts = of_kind(events, "started")[0].facts
    held = held_names(events)
    assert facts["held_out"] == len(held) == 2 and facts["images"] == 3
    state = checkpoint.state(tmp_path / "checkpoints" / "step-000001")
    from studio.families import get, sources
    from studio.training.plan import plan

    base = sources.find("demo-sdxl")
    made = plan(studio.config(**HELD, steps=1), base, get(base.family).facts, studio.images, state)
    trained = {want.picture.name for number in range(40) for want, _ in made.batch(number)}
    assert trained == {picture.name for picture in studio.images.pictures} - held
    assert {want.picture.name for want in made.everything()} >= held


def test_a_look_says_the_same_for_the_same_weights(studio, tmp_path, of_kind):
    """The figures are of the weights alone: not of the step, the batch size, or what was drawn before."""
    looks = []
    for run, values in enumerate(({"batch_size": 1}, {"batch_size": 4})):
        events = list(studio.run(studio.config(**HELD, steps=1, learning_rate=1e-12, **values), tmp_path / str(run)))
        looks += of_kind(events, "validation")
    assert len(looks) == 4
    for one, two in pairwise(looks):
        assert one.loss == pytest.approx(two.loss, rel=1e-6)
        assert one.by_level == pytest.approx(two.by_level, rel=1e-4) and one.by_picture.keys() == two.by_picture.keys()
    first = looks[0]
    assert len(first.by_level) == LEVELS and first.low <= first.loss <= first.high
    assert sum(first.by_level) / LEVELS == pytest.approx(first.loss, rel=1e-4)
    assert sum(first.by_picture.values()) / 2 == pytest.approx(first.loss, rel=1e-4)


@pytest.mark.usefixtures("few_levels")
def test_the_average_is_what_is_looked_at(studio, tmp_path, of_kind):
    """The last look of a run with an average sees what its checkpoint's adapter does, which is not what the run trains."""
    averaged = of_kind(studio.run(studio.config(**HELD, steps=2, ema_decay=0.99, learning_rate=0.01), tmp_path / "ema"), "validation")
    plain = of_kind(studio.run(studio.config(**HELD, steps=2, learning_rate=0.01), tmp_path / "plain"), "validation")
    saved = tmp_path / "ema" / "checkpoints" / "step-000002" / checkpoint.ADAPTER
    again = of_kind(studio.run(studio.config(**HELD, steps=1, learning_rate=1e-12, start_from=str(saved)), tmp_path / "again"), "validation")
    assert averaged[-1].by_picture == pytest.approx(again[0].by_picture, rel=1e-5) != plain[-1].by_picture


def losses(monkeypatch, values):
    """Held-out losses as a script: what follows from them is what is tested. The looks themselves are real."""
    real, script = Run.validate, iter(values)

    def validate(self):
        from studio.training import run as module

        with monkeypatch.context() as patch:
            found = next(script)
            measure = module.measure
            patch.setattr(module, "measure", lambda *args: _scaled(measure(*args), found))
            return real(self)

    monkeypatch.setattr(Run, "validate", validate)


def _scaled(measured, loss):
    from dataclasses import replace

    return replace(measured, losses=torch.full_like(measured.losses, loss))


@pytest.mark.usefixtures("few_levels")
def test_a_run_stops_early_at_a_checkpoint_and_gives_the_best(studio, tmp_path, of_kind, monkeypatch):
    losses(monkeypatch, [0.9, 0.5, 0.4, 0.45, 0.41, 0.3])
    events = list(studio.run(studio.config(**HELD, steps=9, early_stop=2), tmp_path))
    assert [(e.step, e.best, e.stale) for e in of_kind(events, "validation")] == [(0, False, 0), (1, True, 0), (2, True, 0), (3, False, 1), (4, False, 2)]
    told_last = of_kind(events, "warned")[-1].message
    assert told_last == "stopped early at step 4: 2 looks at the held-out pictures without a new best; the LoRA is that of step 2, the lowest"
    result = events[-1].result
    assert events[-1].step == 4 and result["stopped_early"] and result["checkpoint"] == "checkpoints/step-000002"
    assert (result["best_step"], result["best_loss"]) == (2, pytest.approx(0.4))
    found = {stored.step: stored for stored in checkpoint.list(tmp_path / "checkpoints")}
    assert sorted(found) == [1, 2, 4] and [step for step, one in found.items() if one.best] == [2]
    assert all(found[step].whole for step in (2, 4))


@pytest.mark.usefixtures("few_levels")
def test_the_best_is_kept_whole_however_old_it_is(studio, tmp_path, monkeypatch):
    losses(monkeypatch, [0.9, 0.1, 0.5, 0.5, 0.5, 0.5, 0.5])
    events = list(studio.run(studio.config(**HELD, steps=6, save_every=1), tmp_path))
    found = checkpoint.list(tmp_path / "checkpoints")
    assert [one.step for one in found if one.whole] == [1, 5, 6] and [one.step for one in found if one.best] == [1]
    assert events[-1].result["checkpoint"] == "checkpoints/step-000001"


@pytest.mark.usefixtures("few_levels")
def test_without_keeping_the_best_the_last_is_given(studio, tmp_path, monkeypatch):
    losses(monkeypatch, [0.9, 0.1, 0.5, 0.5])
    events = list(studio.run(studio.config(**HELD, steps=3, keep_best=False), tmp_path))
    assert events[-1].result["checkpoint"] == "checkpoints/step-000003" and events[-1].result["best_step"] == 1
    assert not any(one.best for one in checkpoint.list(tmp_path / "checkpoints"))


@pytest.fixture(scope="module")
def patient(studio, tmp_path_factory):
    """Folder and events of a run that loses patience at step 5."""
    folder = tmp_path_factory.mktemp("patient")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "LEVELS", 2)
        losses(patch, SCRIPT)
        return folder, list(studio.run(studio.config(**HELD, steps=9, save_every=1, early_stop=3), folder))


@pytest.mark.usefixtures("few_levels")
@pytest.mark.parametrize("cut", [2, 3])
def test_patience_and_best_are_resumed_exactly(studio, tmp_path, of_kind, monkeypatch, patient, cut):
    with monkeypatch.context() as patch:
        losses(patch, SCRIPT)
        for event in studio.run(studio.config(**HELD, steps=9, save_every=1, early_stop=3), tmp_path):
            if event.kind == "checkpoint" and event.step == cut:
                break
    losses(monkeypatch, SCRIPT[cut + 1 :])
    start = str(tmp_path / "checkpoints" / f"step-{cut:06d}")
    rest = list(studio.run(studio.config(**HELD, steps=9, save_every=1, early_stop=3, start_from=start), tmp_path))
    folder, straight = patient
    figures = [(e.step, e.best, e.stale) for e in of_kind(straight, "validation")]
    assert [(e.step, e.best, e.stale) for e in of_kind(rest, "validation")] == figures[cut + 1 :]
    assert rest[-1].result == straight[-1].result and rest[-1].step == 5
    assert_same(outcome(folder, 5), outcome(tmp_path, 5))


@pytest.mark.usefixtures("few_levels")
def test_a_run_that_stopped_early_and_died_before_its_end_stops_at_once(studio, tmp_path, of_kind, monkeypatch):
    with monkeypatch.context() as patch:
        losses(patch, [0.9, 0.5, 0.6])
        first = list(studio.run(studio.config(**HELD, steps=9, early_stop=1), tmp_path))
        start = str(tmp_path / "checkpoints" / "step-000002")
        again = list(studio.run(studio.config(**HELD, steps=9, early_stop=1, start_from=start), tmp_path))
    assert told(again) == [] and again[-1].result == first[-1].result
    losses(monkeypatch, [0.6, 0.6, 0.6])
    longer = list(studio.run(studio.config(**HELD, steps=12, early_stop=2, start_from=start), tmp_path))
    assert [step[0] for step in told(longer)] == [3, 4]  # whoever extends it gets as much patience anew


@pytest.mark.usefixtures("few_levels")
def test_finishing_now_still_gives_the_best(studio, tmp_path, monkeypatch):
    losses(monkeypatch, [0.9, 0.2, 0.5, 0.5])
    events = list(studio.run(studio.config(**HELD, steps=9), tmp_path / "a", Asked({1: "finish"})))
    assert events[-1].step == 2 and events[-1].result["checkpoint"] == "checkpoints/step-000001" and not events[-1].result["stopped_early"]
    assert load_file(tmp_path / "a" / "checkpoints" / "step-000001" / checkpoint.ADAPTER)
