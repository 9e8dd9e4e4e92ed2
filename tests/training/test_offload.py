"""Runs whose blocks wait in main memory, as far as a CPU can tell: the same losses and the same file."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from studio import families
from studio.errors import RunError
from studio.events import Sample
from studio.families import offload, sources
from studio.families.base import Components
from studio.training import placing, preflight, speed
from studio.training.previews import Previewer

from .conftest import Studio
from .test_fast import Bench
from .test_loop import BASES


def test_a_run_goes_on_with_another_share_and_ends_with_the_same_weights(studio: Studio, tmp_path: Path, of_kind) -> None:
    plain = list(studio.run(studio.config(steps=2), tmp_path / "plain"))
    [first] = of_kind(studio.run(studio.config(steps=1, block_offload=1.0), tmp_path / "waits"), "checkpoint")
    onward = studio.config(steps=2, block_offload=0.5, start_from=str(tmp_path / "waits" / first.path))
    more = list(studio.run(onward, tmp_path / "waits"))
    [start] = of_kind(more, "started")
    assert start.step == 1 and start.facts["block_offload"] == 0.5
    ends = [load_file(tmp_path / name / of_kind(events, "checkpoint")[-1].adapter) for name, events in (("plain", plain), ("waits", more))]
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_products_in_eight_bits_need_all_blocks_on_the_device(studio: Studio) -> None:
    with pytest.raises(ValueError, match="name one of them"):
        studio.config(fp8_products=True, block_offload=0.5)
    assert studio.config(fp8_products=True, block_offload=0).fp8_products


def test_a_base_too_large_for_the_device_is_told_to_let_blocks_wait(monkeypatch: pytest.MonkeyPatch, studio: Studio) -> None:
    base = sources.find("demo-flux")
    size = preflight.weights(base) * 4
    monkeypatch.setattr(preflight, "free_memory", lambda device: int(size * 0.75))
    with pytest.raises(RunError, match="a larger block_offload"):
        preflight.memory(base, torch.float32, torch.device("cpu"))
    preflight.memory(base, torch.float32, torch.device("cpu"), share=1.0)


@pytest.mark.parametrize("base", BASES)
def test_fused_steps_with_waiting_blocks_are_the_same_bit_for_bit(base: str) -> None:
    plain, waits = Bench(base, "engine"), Bench(base, "engine")
    denoiser = waits.subject.components.denoiser
    assert waits.engine is not None
    waits.engine.ring = ring = offload.wait(denoiser, offload.names(denoiser, 0.7), torch.device("cpu"), placing._trained, placing._joined)
    batches, rates = [[(64, 0)], [(64, 1), (128, 2)]], [1e-2, 5e-3]
    assert plain.losses(batches, rates) == waits.losses(batches, rates)
    assert all(torch.equal(one, other) for one, other in zip(plain.weights(), waits.weights(), strict=True))
    assert all(slot.holds for slot in ring.slots)
    ring.rest()
    assert not any(slot.holds or slot.bound for slot in ring.slots)
    assert plain.losses(batches[:1], rates[:1]) == waits.losses(batches[:1], rates[:1])


def test_previews_borrow_text_encoders_block_by_block_where_they_do_not_fit(tmp_path: Path) -> None:
    base, family = sources.find("demo-flux"), families.get("flux")
    found: list[dict[str, torch.Tensor]] = []
    streamed: list[bool] = []

    def preview(c: Components, step: int, folder: Path) -> Iterator[Sample]:
        streamed.append(any(offload.is_waiting(module) for module in c.parts["text_encoder_2"].modules()))
        found.append(family.encode_prompt(c, [(("a yellow sun", 1.0),)]))
        yield Sample(step=step, path="samples/1.png", prompt="p", seed=1)

    for apart in (frozenset(), frozenset({"text"})):
        c = family.load(base, ["denoiser"], torch.float32, torch.device("cpu"))
        previewer = Previewer(preview, family, c, tmp_path, nullcontext, apart)
        for step in range(2):
            assert [event.kind for event in previewer.show(step)] == ["sample"]
        assert previewer.resting and not any(offload.is_waiting(module) for module in previewer.resting["text_encoder_2"].modules())
        assert "text_encoder_2" not in c.parts
    assert streamed == [False, False, True, True]
    for again in found[1:]:
        assert all(torch.equal(tensor, found[0][name]) for name, tensor in again.items())


def test_a_long_run_with_waiting_blocks_is_recorded_and_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("demo-sdxl", "eager")
    monkeypatch.setattr(speed, "_obstacle", lambda attached, config: "")
    monkeypatch.setattr(speed, "find_spec", lambda name: name)
    modes = {}
    for share, asked in ((0.0, "auto"), (0.5, "auto"), (0.5, "compile")):
        config = bench.config.model_copy(update={"block_offload": share, "speed": asked, "resolution": 1024})
        modes[share, asked] = speed.choose(bench.attached, config, steps=10_000, shapes=1).mode
    assert modes == {(0.0, "auto"): "compile", (0.5, "auto"): "graph", (0.5, "compile"): "compile"}
