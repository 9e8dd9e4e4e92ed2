"""Claims about how a run keeps to its memory plan."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from studio.errors import RunError
from studio.families import sources
from studio.training import budget, preflight
from tests.training.test_limits import spoil


def test_a_run_tells_its_plan_and_uses_it(studio, tmp_path, of_kind):
    [started] = of_kind(list(studio.run(studio.config(steps=1), tmp_path)), "started")
    facts = started.facts
    assert facts["planned_bytes"] == facts["planned_training_bytes"] == sum(facts["planned_parts"].values()) > preflight.weights(sources.find("demo-sdxl")) * 4
    assert facts["recomputed_share"] == 0 and facts["memory_reason"] == "everything fits" and facts["block_offload"] == 0


def small(monkeypatch, size):
    """A machine with so little memory; the demo bases then leave checkpointing open."""
    real = budget.card
    monkeypatch.setattr(budget, "card", lambda config, device: replace(real(config, device), budget=size))
    found = sources.find
    monkeypatch.setattr(sources, "find", lambda *names: _open(found(*names)))


def _open(base):
    habits = {key: value for key, value in base.habits.get("train", {}).items() if key != "gradient_checkpointing"}
    return replace(base, habits={**base.habits, "train": habits})


def test_too_little_memory_recomputes_activations_with_the_same_losses(studio, tmp_path, monkeypatch, of_kind):
    straight = of_kind(list(studio.run(studio.config(), tmp_path / "a")), "step")
    small(monkeypatch, 50_000_000)
    events = list(studio.run(studio.config(), tmp_path / "b"))
    [started] = of_kind(events, "started")
    assert started.facts["recomputed_share"] == 1.0 and "of the blocks recomputed" in started.facts["memory_reason"]
    assert [step.loss for step in of_kind(events, "step")] == pytest.approx([step.loss for step in straight], rel=1e-5)


def test_a_run_that_cannot_fit_says_so_and_goes_on_where_main_memory_can_run_over(studio, tmp_path, monkeypatch, of_kind):
    small(monkeypatch, 10_000_000)
    events = list(studio.run(studio.config(steps=1), tmp_path))
    [told] = [event.message for event in of_kind(events, "warned") if "takes at least" in event.message]
    assert "0.0 GB may be taken" in told and of_kind(events, "finished")


def test_a_run_that_cannot_fit_a_gpu_is_refused(studio, monkeypatch):
    from studio.training.plan import plan

    base = sources.find("demo-flux")
    made = plan(studio.config("demo-flux"), base, _facts(base), studio.images, None)
    monkeypatch.setattr(budget, "card", lambda config, device: budget.Card(True, 900_000_000))
    with pytest.raises(RunError, match=r"takes at least \d\.\d GB .*and 0\.9 GB may be taken: "):
        budget.settle(made, base, torch.device("cuda"), None)


def _facts(base):
    from studio import families

    return families.get(base.family).facts


def test_memory_that_runs_out_in_a_step_recomputes_before_it_halves(studio, tmp_path, monkeypatch, of_kind):
    small(monkeypatch, 10**12)
    spoil(monkeypatch, 1, from_call=2)
    told = [event.message for event in of_kind(list(studio.run(studio.config(steps=3), tmp_path)), "warned")]
    assert "activations are recomputed from here on" in told[-2] and "pictures of a batch go one by one" in told[-1]


def test_a_resumed_run_keeps_the_format_of_its_base(studio, tmp_path, monkeypatch, of_kind):
    list(studio.run(studio.config(steps=2, base_format="int8", save_every=1), tmp_path / "a"))
    start = str(tmp_path / "a" / "checkpoints" / "step-000001")
    events = list(studio.run(studio.config(steps=2, start_from=start), tmp_path / "b"))
    [started] = of_kind(events, "started")
    assert started.facts["base_format"] == "int8" and started.facts["resumed"]


def test_steps_that_slow_down_for_good_are_told_of_once():
    pace = budget.Pace()
    said = [pace.seen(seconds) for seconds in [9.0, *[0.5] * 40, 5.0, *[0.5] * 10, *[2.0] * 10]]
    told = [words for words in said if words]
    assert len(told) == 1 and "2.00 s now and took 0.50 s before" in told[0] and "memory_budget" in told[0]
    assert said.index(told[0]) == 1 + 40 + 1 + 10 + 2, "one slow step is none, three of five are"
    steady = budget.Pace()
    assert not any(steady.seen(seconds) for seconds in [0.5, 1.2] * 50)


def test_a_peak_far_above_the_plan_is_told():
    assert not budget.differs({"planned_reserved_bytes": 10**9, "peak_reserved_bytes": 1.05 * 10**9}) and not budget.differs({})
    assert "took 2.0 GB at its peak and 1.0 GB were planned" in budget.differs({"planned_reserved_bytes": 10**9, "peak_reserved_bytes": 2 * 10**9})


def test_a_preview_that_does_not_fit_costs_no_run(studio, tmp_path, of_kind):
    def preview(c, step, folder):
        raise torch.OutOfMemoryError("CUDA out of memory")

    events = list(studio.run(studio.config(steps=2, sample_every=1), tmp_path, preview=preview))
    told = [event.message for event in of_kind(events, "warned") if event.message.startswith("no preview")]
    assert len(told) == 2 and "too little memory" in told[0] and of_kind(events, "finished")


def test_the_cap_is_set_on_the_card_that_is_meant_and_taken_off_again(studio, monkeypatch):
    """torch's own function is called, with its check of what a device may be; only the driver behind it is a stand-in."""
    seen = []
    monkeypatch.setattr(torch._C, "_cuda_setMemoryFraction", lambda fraction, number: seen.append((round(fraction, 2), number)), raising=False)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None, raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(total_memory=40 * 10**9))
    planned = SimpleNamespace(card=budget.Card(True, 20_920_000_000))
    for device, number in (("cuda", 2), ("cuda:1", 1)):
        with budget.capped(studio.config(memory_budget=20.92), torch.device(device), planned):
            assert seen[-1] == (0.5, number)
        assert seen[-1] == (1.0, number)
    with budget.capped(studio.config(), torch.device("cuda"), planned):
        assert len(seen) == 4, "without a budget nothing is held to anything"
