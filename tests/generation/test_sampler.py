import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from studio.config import GenerateConfig, LoraWeight
from studio.config.training.network import Network
from studio.errors import Cancelled, FormatError, RunError, SettingsError
from studio.events import Event, Finished, Started, Step, Warned
from studio.events import Image as Drawn
from studio.families.base import Components
from studio.generation import denoise, files
from studio.generation.sampler import generate, preview
from studio.lora import attach
from studio.lora.adapter import Adapter
from tests.generation.conftest import Asked, adapter, room_for


def draw(c: Components, folder: Path, rows: list[tuple[Adapter, float]] | None = None, asked: Asked | None = None, **values) -> list[Event]:
    config = GenerateConfig(**({"base": c.base.name, "prompt": "cat face", "seed": 5, "steps": 3, "live_preview": 0} | values))
    rows = rows or []
    return list(generate(c, rows, config, folder, requests=asked or Asked(), names=[f"lora-{i}" for i in range(len(rows))]))


def pixels(folder: Path, events: list[Event]) -> list[bytes]:
    return [Image.open(folder / event.path).tobytes() for event in events if isinstance(event, Drawn)]


def one(c: Components, folder: Path, rows: list[tuple[Adapter, float]] | None = None, **values) -> bytes:
    return pixels(folder, draw(c, folder, rows, **values))[0]


def test_events_tell_every_step_and_picture(c: Components, tmp_path: Path) -> None:
    events = draw(c, tmp_path, count=2)
    assert [event.kind for event in events] == ["started", *["step"] * 3, "image", *["step"] * 3, "image", "finished"]
    assert [(event.step, event.total) for event in events if isinstance(event, Step)] == [(i, 6) for i in range(1, 7)]
    started, finished = events[0], events[-1]
    assert isinstance(started, Started) and isinstance(finished, Finished)
    assert started.settings["width"] == 128 and started.settings["sampler"] == "Euler" and started.settings["guidance"] > 1
    paths = [event.path for event in events if isinstance(event, Drawn)]
    assert finished.result["images"] == paths and all((tmp_path / path).is_file() for path in paths)


def test_each_picture_takes_the_next_seed_and_equals_one_drawn_alone(c: Components, tmp_path: Path) -> None:
    events = draw(c, tmp_path / "both", count=2, steps=2)
    first, second = pixels(tmp_path / "both", events)
    assert [event.seed for event in events if isinstance(event, Drawn)] == [5, 6]
    assert first != second == one(c, tmp_path / "alone", seed=6, steps=2)


def test_a_seed_of_minus_1_is_drawn_and_recorded(c: Components, tmp_path: Path) -> None:
    seeds = {event.seed for _ in range(2) for event in draw(c, tmp_path, seed=-1, steps=1) if isinstance(event, Drawn)}
    assert len(seeds) == 2 and min(seeds) >= 0


def test_a_picture_recalled_from_its_png_is_drawn_again_bit_for_bit(c: Components, tmp_path: Path) -> None:
    rows = [(adapter(c, 1), 0.6), (adapter(c, 2), -0.4)]
    events = draw(c, tmp_path, rows, count=2, sampler="Euler", width=64 + 2 * c.facts.size_multiple, height=64, negative_prompt="")
    last = [event for event in events if isinstance(event, Drawn)][1]
    found = files.load(tmp_path / last.path)
    assert found.config.model_dump(mode="json") == last.settings
    again = draw(c, tmp_path / "again", rows, **found.config.model_dump())
    assert pixels(tmp_path / "again", again)[0] == Image.open(tmp_path / last.path).tobytes()
    assert found.hashes == {"lora-0": "000000000001", "lora-1": "000000000002"}


def test_weights_act_and_weight_0_is_the_picture_of_the_base(c: Components, tmp_path: Path) -> None:
    row = adapter(c, 1)
    base = one(c, tmp_path / "base")
    assert one(c, tmp_path / "on", [(row, 1.0)]) != base
    assert one(c, tmp_path / "off", [(row, 0.0)]) == base
    assert one(c, tmp_path / "gone") == base


def test_the_order_of_the_stack_changes_no_pixel(c: Components, tmp_path: Path) -> None:
    rows = [(adapter(c, 1), 0.6), (adapter(c, 2), -0.4), (adapter(c, 3, ("text_model",)), 1.0)]
    assert one(c, tmp_path / "a", rows) == one(c, tmp_path / "b", rows[::-1])


def test_layers_of_the_text_encoders_are_applied_and_taken_away(c: Components, tmp_path: Path) -> None:
    base = one(c, tmp_path)
    assert one(c, tmp_path, [(adapter(c, 3, ("text_model",), size=1.0), 1.0)]) != base
    assert one(c, tmp_path) == base, "prompts encoded under the stack must not be taken for the base's"


def test_prompts_are_encoded_once(c: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encoder = c.parts["text_encoder_2"]
    hook = encoder.register_forward_hook(lambda *_: calls.append(1))
    draw(c, tmp_path, prompt="a lighthouse that was not drawn before", steps=1, count=3)
    draw(c, tmp_path, [(adapter(c, 1), 1.0)], prompt="a lighthouse that was not drawn before", steps=1)
    hook.remove()
    assert len(calls) == 1


def test_tags_in_the_prompt_are_not_read_to_the_model(c: Components, tmp_path: Path) -> None:
    row = adapter(c, 1)
    assert one(c, tmp_path, [(row, 0.5)], prompt="cat face <lora:lora-0:0.9>") == one(c, tmp_path, [(row, 0.5)])
    with pytest.raises(SettingsError, match="<lora:ink> is not in the stack"):
        draw(c, tmp_path, prompt="cat <lora:ink:1>")


@pytest.mark.parametrize("at", [1, 2])
def test_a_cancel_stops_between_steps_and_keeps_what_is_finished(c: Components, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoise, "LOOK_SECONDS", 1e9)
    with pytest.raises(Cancelled, match=f"{at - 1} of 3 pictures"):
        draw(c, tmp_path, asked=Asked("cancel", 1 if at == 1 else 5), count=3)
    assert len(list(tmp_path.glob("images/*"))) == at - 1
    assert one(c, tmp_path / "next")


def test_finish_ends_after_the_picture_at_hand(c: Components, tmp_path: Path) -> None:
    events = draw(c, tmp_path, asked=Asked("finish", 2), count=3, steps=2)
    assert sum(isinstance(event, Drawn) for event in events) == 1
    assert isinstance(events[-1], Finished) and events[-1].result["finished_early"]


def test_closing_the_events_stops_the_work(c: Components, tmp_path: Path) -> None:
    config = GenerateConfig(base=c.base.name, prompt="cat", seed=1, steps=50, live_preview=0)
    events = generate(c, [], config, tmp_path, requests=Asked(), names=[])
    assert [next(events).kind for _ in range(3)] == ["started", "step", "step"]
    events.close()  # type: ignore[attr-defined]
    assert not list(tmp_path.glob("images/*"))


def test_a_size_that_does_not_fit_is_refused_with_the_nearest_that_does(c: Components, tmp_path: Path) -> None:
    multiple = c.facts.size_multiple
    with pytest.raises(SettingsError, match=f"multiples of {multiple} pixels; 128 instead of 129") as caught:
        draw(c, tmp_path, width=129)
    assert "\n" not in str(caught.value)


def test_every_sampler_draws_its_own_picture(c: Components, tmp_path: Path) -> None:
    small: dict[str, Any] = {"steps": 6, "width": 64, "height": 64}
    found = {name: one(c, tmp_path / name, sampler=name, **small) for name in c.facts.samplers}
    assert len(set(found.values())) == len(c.facts.samplers)
    assert one(c, tmp_path / "own", **small) == found["Euler"]
    assert one(c, tmp_path / "case", **small, sampler="euler") == found["Euler"]
    for name, picture in found.items():
        assert 8 < torch.frombuffer(bytearray(picture), dtype=torch.uint8).float().std() < 120, f"{name} draws a flat or a noisy picture"
    with pytest.raises(SettingsError, match=r"sampler 'Heun\+' is unknown .* Euler"):
        draw(c, tmp_path, sampler="Heun+")


def test_a_negative_prompt_acts_or_is_said_to_be_ignored(c: Components, tmp_path: Path) -> None:
    plain = one(c, tmp_path / "plain")
    events = draw(c, tmp_path / "not", negative_prompt="yellow")
    warned = [event.message for event in events if isinstance(event, Warned)]
    if c.facts.negative_prompts:
        assert pixels(tmp_path / "not", events)[0] != plain and not warned
        assert any("no effect" in event.message for event in draw(c, tmp_path, negative_prompt="x", guidance=1, steps=1) if isinstance(event, Warned))
    else:
        assert pixels(tmp_path / "not", events)[0] == plain and "ignored" in warned[0]


def test_a_broken_adapter_draws_nothing_and_leaves_the_base(c: Components, tmp_path: Path) -> None:
    base = one(c, tmp_path / "base")
    bad = Adapter(c.facts.name, {f"{c.facts.denoiser}.nowhere": next(iter(adapter(c, 1).layers.values()))})
    with pytest.raises(FormatError):
        draw(c, tmp_path / "bad", [(adapter(c, 1), 1.0), (bad, 1.0)])
    assert not (tmp_path / "bad").exists()
    assert one(c, tmp_path / "after") == base


def test_a_picture_of_no_numbers_is_an_error_not_a_black_square(c: Components, tmp_path: Path) -> None:
    hook = c.denoiser.register_forward_hook(lambda module, args, output: (output[0] * float("nan"),))
    try:
        with pytest.raises(RunError, match="no numbers"):
            draw(c, tmp_path, steps=1)
    finally:
        hook.remove()


def test_a_preview_shows_the_adapter_in_training_and_disturbs_nothing(c: Components, tmp_path: Path) -> None:
    attach.attach(c, Network(rank=4, alpha=4))
    try:
        c.denoiser.train()
        torch.manual_seed(11)
        state = torch.get_rng_state()
        prompts = ["cat face", "donut"]
        untrained = list(preview(c, prompts, 0, tmp_path, 5, 3))
        for name, parameter in c.denoiser.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        before = _trainable(c)
        trained = list(preview(c, prompts, 200, tmp_path, 5, 3))
        assert torch.equal(torch.get_rng_state(), state) and c.denoiser.training and _trainable(c) == before
        assert torch.is_grad_enabled() and sum(p.requires_grad for p in c.denoiser.parameters()) > 0
    finally:
        attach.detach(c)
        c.denoiser.eval()
    assert [(s.step, s.prompt, s.seed) for s in trained] == [(200, "cat face", 5), (200, "donut", 6)]
    bytes_of = {s.path: Image.open(tmp_path / s.path).tobytes() for s in [*untrained, *trained]}
    assert bytes_of[untrained[0].path] != bytes_of[trained[0].path]
    base = one(c, tmp_path, steps=3)
    assert bytes_of[untrained[0].path] == base, "an adapter that has learned nothing changes nothing, and previews draw as Generate does"


def _trainable(c: Components) -> str:
    digest = hashlib.sha256()
    for parameter in c.denoiser.parameters():
        if parameter.requires_grad:
            digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def test_strengths_move_over_the_steps_and_the_stack_says_how_it_acts(c: Components, tmp_path: Path) -> None:
    row = adapter(c, 1)
    moving = LoraWeight.parse("ink=1,curve=1@0/0@1")
    events = draw(c, tmp_path / "moving", [(row, moving)], steps=4)  # type: ignore[list-item]
    started = next(event for event in events if isinstance(event, Started))
    assert started.facts["stack"] == "live: strengths move over the steps"
    found = {pixels(tmp_path / "moving", events)[0]}
    for name, weight in (("base", 0.0), ("whole", 1.0), ("late", LoraWeight.parse("ink=1,curve=0@0/1@1"))):
        found.add(one(c, tmp_path / name, [(row, weight)], steps=4))  # type: ignore[list-item]
    assert len(found) == 4
    level = one(c, tmp_path / "level", [(row, LoraWeight.parse("ink=1,curve=1@0/1@1"))], steps=4)  # type: ignore[list-item]
    assert level == one(c, tmp_path / "plain", [(row, 1.0)], steps=4)


def test_pictures_drawn_at_once_are_those_drawn_alone_but_for_their_last_digits(c: Components, tmp_path: Path) -> None:
    rows = [(adapter(c, 1), 0.5)]
    alone, events = draw(c, tmp_path / "alone", rows, count=3, steps=2), draw(c, tmp_path / "batch", rows, count=3, steps=2, batch=2)
    assert [event.step for event in events if isinstance(event, Step)] == [2, 4, 5, 6], "two at once, then the third"
    assert [event.seed for event in events if isinstance(event, Drawn)] == [5, 6, 7]
    for one_by_one, together in zip(pixels(tmp_path / "alone", alone), pixels(tmp_path / "batch", events), strict=True):
        difference = (torch.frombuffer(bytearray(one_by_one), dtype=torch.uint8).int() - torch.frombuffer(bytearray(together), dtype=torch.uint8).int()).abs()
        assert difference.max() <= 1
    assert pixels(tmp_path / "batch", events)[2] == pixels(tmp_path / "alone", alone)[2]


def test_a_batch_that_does_not_fit_is_halved(c: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = room_for(1, monkeypatch)
    events = draw(c, tmp_path / "batch", count=3, steps=1, batch=4)
    assert sizes == [3, 2] and pixels(tmp_path / "batch", events) == pixels(tmp_path / "alone", draw(c, tmp_path / "alone", count=3, steps=1))


def held() -> int:
    """Bytes of all tensors that anything still holds."""
    import gc

    gc.collect()
    tensors = [found for found in gc.get_objects() if type(found) in (torch.Tensor, torch.nn.Parameter)]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


@pytest.mark.parametrize("n", [12, pytest.param(500, marks=pytest.mark.long)])
def test_memory_stays_flat_over_many_pictures_and_stacks(c: Components, tmp_path: Path, n: int) -> None:
    pool = [adapter(c, seed) for seed in range(3)]

    def some(first: int, count: int) -> None:
        for i in range(first, first + count):
            rows = [(pool[i % 3], 0.1 + i % 7 / 10), (pool[(i + 1) % 3], -0.2)][: i % 3]
            draw(c, tmp_path, rows, steps=1, width=64, height=64, seed=i, stack_mode=("baked", "live")[i % 2], prompt=f"cat {i % 4}")

    some(0, 12)
    before = held()
    some(12, n)
    some(0, 12)
    assert held() <= before * 1.001
