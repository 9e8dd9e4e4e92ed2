"""Claims about a whole run, on the real demo bases."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file

from studio import families
from studio.errors import Cancelled, RunError, SettingsError
from studio.events import Sample
from studio.families import sources
from studio.lora import attach
from studio.training import checkpoint
from studio.training.step import Stepper

from .conftest import BASES, Asked


def outcome(folder, step: int):
    """Everything that a run leaves behind: weights, optimizer and state."""
    path = checkpoint.verify(folder / "checkpoints" / f"step-{step:06d}").path
    return load_file(path / checkpoint.ADAPTER), load_file(path / checkpoint.OPTIMIZER), checkpoint.state(path)


def assert_same(one, two):
    for ours, theirs in zip(one[:2], two[:2], strict=True):
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    free = {"start_from", "steps", "save_every", "sample_every"}
    assert {k: v for k, v in one[2].settings.items() if k not in free} == {k: v for k, v in two[2].settings.items() if k not in free}


def told(events) -> list[tuple]:
    return [(e.step, e.loss, e.learning_rate, e.gradient_norm) for e in events if e.kind == "step"]


def test_resuming_equals_an_unbroken_run_bit_for_bit(studio, tmp_path):
    """3 batches an epoch, 2 a step: the cuts at 1 and 4 are within epochs, the one at 3 at the end of one. test_resume has both families and all else."""
    values = {"gradient_accumulation": 2, "flip": True, "caption_dropout": 0.3, "lr_schedule": "cosine", "warmup_steps": 2, "steps": 5}
    straight = told(studio.run(studio.config(**values), tmp_path / "straight"))
    cut, start_from = [], None
    for i, (save_at, finish_at) in enumerate([(1, 1), (3, 3), (4, 4), (5, 5)]):
        folder = tmp_path / f"cut{i}"
        for event in studio.run(studio.config(**values, start_from=start_from, save_every=save_at), folder):
            cut += told([event])
            if event.kind == "checkpoint" and event.step == finish_at:
                break
        start_from = str(folder / "checkpoints" / f"step-{finish_at:06d}")
    assert cut == straight
    assert_same(outcome(tmp_path / "straight", 5), outcome(tmp_path / "cut3", 5))


def test_half_precision_resumes_bit_for_bit_with_fp32_weights(studio, tmp_path, plain):
    values = {"precision": "bf16", "steps": 4}
    folder, straight = plain(**values, save_every=2)
    middle = str(folder / "checkpoints" / "step-000002")
    again = told(studio.run(studio.config(**values, start_from=middle), tmp_path))
    assert again == told(straight)[2:]
    assert_same(outcome(folder, 4), outcome(tmp_path, 4))
    weights = outcome(tmp_path, 4)[0]
    assert any(not torch.equal(w, w.bfloat16().float()) for name, w in weights.items() if name.endswith(".up"))


def test_half_precision_follows_full_precision(plain):
    losses = {precision: [step[1] for step in told(plain(precision=precision, steps=4, save_every=2)[1])] for precision in ("fp32", "bf16")}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]


def test_a_finished_run_is_extended(studio, tmp_path, of_kind, plain):
    middle = str(plain(steps=2)[0] / "checkpoints" / "step-000002")
    events = list(studio.run(studio.config(steps=4, start_from=middle), tmp_path))
    assert [e.step for e in of_kind(events, "step")] == [3, 4]
    assert of_kind(events, "started")[0].step == 2
    assert_same(outcome(plain(steps=4)[0], 4), outcome(tmp_path, 4))


def test_resuming_with_other_settings_is_refused_by_name(studio, tmp_path, plain):
    start = str(plain(steps=2)[0] / "checkpoints" / "step-000002")
    with pytest.raises(SettingsError, match=r"flip False -> True; learning_rate 0\.002 -> 0\.01"):
        list(studio.run(studio.config(learning_rate=0.01, flip=True, start_from=start), tmp_path / "b"))
    with pytest.raises(SettingsError, match="the pictures or captions"):
        list(studio.run(studio.config(trigger="new", start_from=start), tmp_path / "b"))
    assert not (tmp_path / "b").exists()


def test_a_run_without_a_seed_records_one_and_resumes_with_it(studio, tmp_path, of_kind):
    events = list(studio.run(studio.config(seed=-1, steps=1), tmp_path / "a"))
    seed = of_kind(events, "started")[0].settings["seed"]
    assert seed >= 0
    start = str(tmp_path / "a" / "checkpoints" / "step-000001")
    again = list(studio.run(studio.config(seed=-1, steps=2, start_from=start), tmp_path / "b"))
    assert of_kind(again, "started")[0].settings["seed"] == seed


@pytest.mark.parametrize("base", BASES)
def test_the_base_is_not_changed_and_the_preview_disturbs_nothing(studio, tmp_path, base, plain):
    sums = []

    def preview(c, step, folder):
        assert not c.denoiser.training
        assert {"vae", "text_encoder", "tokenizer", c.facts.denoiser} <= c.parts.keys()
        torch.rand(5)
        digest = hashlib.sha256()
        for _, module in sorted(attach.module_map(c).items()):
            digest.update(module.weight.detach().numpy().tobytes())
        sums.append(digest.hexdigest())
        yield Sample(step=step, path=f"samples/{step}.png", prompt="p", seed=1)

    with_previews = told(studio.run(studio.config(base, steps=2, sample_every=1), tmp_path / "a", preview=preview))
    folder, events = plain(base, steps=2)
    assert with_previews == told(events)
    assert_same(outcome(tmp_path / "a", 2), outcome(folder, 2))
    found = sources.find(base)
    fresh = families.get(found.family).load(found, ["denoiser", "vae", "text"], torch.float32, torch.device("cpu"))
    preview_of_fresh = preview(fresh, 0, tmp_path)
    next(preview_of_fresh)
    assert len(sums) == 3 and len(set(sums)) == 1


def test_a_preview_that_fails_is_a_warning(studio, tmp_path, of_kind):
    def preview(c, step, folder):
        yield Sample(step=step, path="samples/1.png", prompt="p", seed=1)
        raise RunError("no room for pictures")

    events = list(studio.run(studio.config(sample_every=2), tmp_path, preview=preview))
    assert [e.message for e in of_kind(events, "warned")] == ["no preview at step 2: no room for pictures"]
    assert len(of_kind(events, "sample")) == 1 and events[-1].kind == "finished"


@pytest.mark.parametrize("base", BASES)
def test_the_loss_falls(studio, tmp_path, base):
    losses = [step[1] for step in told(studio.run(studio.config(base, steps=16, batch_size=3, rank=16, learning_rate=5e-3), tmp_path))]
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])


def test_events_tell_the_run(studio, tmp_path, of_kind):
    events = list(studio.run(studio.config(steps=4, save_every=2), tmp_path))
    kinds = [e.kind for e in events if e.kind != "loading"]
    assert kinds == ["started", "step", "step", "checkpoint", "step", "step", "checkpoint", "finished"]
    facts = of_kind(events, "started")[0].facts
    assert facts["modules"] == 88 and facts["scale"] == 1.0 and facts["buckets"] == {"64x64": 3, "88x40": 2}
    assert (tmp_path / of_kind(events, "checkpoint")[-1].adapter).is_file()
    assert events[-1].result["checkpoint"] == "checkpoints/step-000004"


def test_epochs_become_steps(studio, tmp_path, of_kind):
    events = list(studio.run(studio.config(steps=None, epochs=2), tmp_path))
    assert len(of_kind(events, "step")) == 6  # 3 pictures in 2 batches, 2 in 1
    assert of_kind(events, "started")[0].settings["steps"] == 6


def test_finish_now_keeps_what_was_learned(studio, tmp_path, of_kind, plain):
    events = list(studio.run(studio.config(steps=50), tmp_path, Asked({1: "finish"})))
    assert [e.step for e in of_kind(events, "step")] == [1, 2]
    assert events[-1].result["finished_early"] and events[-1].step == 2
    assert_same(outcome(tmp_path, 2), outcome(plain(steps=2)[0], 2))


def test_a_sample_asked_for_is_made_once(studio, tmp_path, of_kind):
    def preview(c, step, folder):
        yield Sample(step=step, path=f"samples/{step}.png", prompt="p", seed=1)

    events = list(studio.run(studio.config(steps=4), tmp_path, Asked({1: "sample"}), preview))
    assert [e.step for e in of_kind(events, "sample")] == [2]


def test_a_checkpoint_asked_for_is_made_once_and_changes_nothing(studio, tmp_path, of_kind, plain):
    events = list(studio.run(studio.config(steps=4), tmp_path, Asked({1: "keep"})))
    assert [e.step for e in of_kind(events, "checkpoint")] == [2, 4]
    assert_same(outcome(tmp_path, 4), outcome(plain(steps=4)[0], 4))


def test_cancel_keeps_earlier_checkpoints_and_leaves_no_debris(studio, tmp_path):
    with pytest.raises(Cancelled):
        list(studio.run(studio.config(steps=50, save_every=2), tmp_path / "a", Asked({2: "cancel"})))
    assert [path.name for path in (tmp_path / "a" / "checkpoints").iterdir()] == ["step-000002"]
    assert outcome(tmp_path / "a", 2)[2].step == 2


def test_closing_the_run_lets_go_of_the_models(studio, tmp_path):
    held = []

    def preview(c, step, folder):
        held.append(c)
        return iter(())

    running = studio.run(studio.config(steps=50, sample_every=1), tmp_path, preview=preview)
    for event in running:
        if event.kind == "step" and event.step == 2:
            running.close()
    assert held[0].parts == {}


def test_start_from_takes_the_weights_and_counts_anew(studio, tmp_path, of_kind, plain):
    first = plain(steps=2)[0]
    source = first / "checkpoints" / "step-000002" / checkpoint.ADAPTER
    events = list(studio.run(studio.config(steps=1, learning_rate=1e-12, start_from=str(source)), tmp_path / "next"))
    assert [e.step for e in of_kind(events, "step")] == [1]
    before, after = outcome(first, 2)[0], outcome(tmp_path / "next", 1)[0]
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-10, rtol=1e-6)


@pytest.mark.parametrize("format", ["kohya", "peft"])
def test_start_from_reads_an_exported_file(studio, tmp_path, format, plain):
    from studio.lora import formats

    trained = checkpoint.adapter(plain(steps=2, alpha=2.0)[0] / "checkpoints" / "step-000002")
    file = tmp_path / "export.safetensors"
    formats.write(trained, file, format=format, dtype="fp32", metadata={})
    list(studio.run(studio.config(steps=1, learning_rate=1e-12, rank=6, start_from=str(file)), tmp_path / "next"))
    again = checkpoint.adapter(tmp_path / "next" / "checkpoints" / "step-000001")
    for path, layer in trained.layers.items():
        torch.testing.assert_close(again.layers[path].delta(), layer.delta(), atol=1e-7, rtol=1e-5)


def test_a_step_that_is_not_finite_is_skipped_and_counted(studio, tmp_path, monkeypatch, of_kind):
    real, calls = Stepper._losses, []

    def spoiled(self, micro):
        calls.append(1)
        return real(self, micro) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(Stepper, "_losses", spoiled)
    events = list(studio.run(studio.config(steps=3), tmp_path))
    assert [e.message for e in of_kind(events, "warned")] == ["step 2: the loss is not finite; step skipped (1 so far)"]
    assert events[-1].result["skipped"] == 1
    weights, optimizer, state = outcome(tmp_path, 3)
    assert all(w.isfinite().all() for w in weights.values()) and state.skipped == 1
    assert {float(v) for name, v in optimizer.items() if name.endswith("/step")} == {2.0}


def test_ten_in_a_row_end_the_run_and_keep_the_last_checkpoint(studio, tmp_path, monkeypatch):
    real, calls = Stepper._losses, []

    def spoiled(self, micro):
        calls.append(1)
        return real(self, micro) * (float("inf") if len(calls) > 3 else 1.0)

    monkeypatch.setattr(Stepper, "_losses", spoiled)
    with pytest.raises(RunError, match="10 steps in a row, up to step 13; the checkpoint of step 12 is kept"):
        list(studio.run(studio.config(steps=50, save_every=3), tmp_path))
    assert all(w.isfinite().all() for w in outcome(tmp_path, 12)[0].values())


def test_a_backward_pass_that_misses_the_adapter_is_an_error(studio, tmp_path, monkeypatch):
    real = Stepper._losses
    monkeypatch.setattr(Stepper, "_losses", lambda self, micro: real(self, micro) * 0.0)
    with pytest.raises(RunError, match="every gradient is zero"):
        list(studio.run(studio.config(), tmp_path))


def test_gradient_checkpointing_changes_no_result(plain):
    losses = [told(plain(gradient_checkpointing=on)[1]) for on in (False, True)]
    for one, two in zip(*losses, strict=True):
        assert one[1] == pytest.approx(two[1], rel=1e-4)


def test_a_setting_that_does_not_fit_the_base_is_refused_before_a_step(studio, tmp_path):
    with pytest.raises(SettingsError, match="min_snr_gamma"):
        list(studio.run(studio.config("demo-flux", min_snr_gamma=5), tmp_path))
