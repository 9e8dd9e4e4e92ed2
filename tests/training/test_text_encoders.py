"""CLIP encoders trained beside the denoiser: they move at their own rate, stop when told, and every loss reads what they give now."""

import pytest
import torch

from studio.lora import formats, proof
from studio.lora.adapter import Adapter, LowRank
from studio.lora.header import completed
from studio.training import checkpoint

from .test_loop import told
from .test_networks import everything

ENCODERS = {"demo-sdxl": {"text_encoder", "text_encoder_2"}, "demo-flux": {"text_encoder"}}


def text_layers(folder, step: int) -> Adapter:
    found = checkpoint.adapter(folder / "checkpoints" / f"step-{step:06d}")
    return Adapter(found.family, {path: layer for path, layer in found.layers.items() if path.startswith("text_encoder")})


def ups(adapter: Adapter) -> list[torch.Tensor]:
    return [layer.up for layer in adapter.layers.values() if isinstance(layer, LowRank)]


@pytest.mark.parametrize("base", [pytest.param("demo-sdxl", marks=pytest.mark.long), "demo-flux"])
def test_encoders_learn_until_they_are_told_to_stop_and_resume_to_the_bit(studio, tmp_path, base):
    values = {"steps": 4, "text_encoder_learning_rate": 1e-3, "text_encoder_stop": 2, "dropout": 0.1, "precision": "bf16", "ema_decay": 0.5}
    values |= {"base": base, "keep_checkpoints": 9}
    events = list(studio.run(studio.config(**values, save_every=1), tmp_path / "straight"))
    parts = {path.partition(".")[0] for path in text_layers(tmp_path / "straight", 4).layers}
    assert parts == ENCODERS[base]
    for cut in (1, 3):
        start = str(tmp_path / "straight" / "checkpoints" / f"step-{cut:06d}")
        assert told(studio.run(studio.config(**values, start_from=start), tmp_path / f"cut{cut}")) == told(events)[cut:]
        straight, again = everything(tmp_path / "straight", 4), everything(tmp_path / f"cut{cut}", 4)
        assert [key for key in straight if not torch.equal(straight[key], again[key])] == []


def test_a_stopped_encoder_keeps_every_bit_and_a_trained_one_changes(studio, tmp_path):
    values = {"steps": 4, "text_encoder_learning_rate": 1e-3, "text_encoder_stop": 2, "save_every": 1, "keep_checkpoints": 9}
    list(studio.run(studio.config(**values), tmp_path))
    at = {step: ups(text_layers(tmp_path, step)) for step in (1, 2, 4)}
    assert all(not torch.equal(one, two) for one, two in zip(at[1], at[2], strict=True))
    assert all(torch.equal(two, four) and bool(two.any()) for two, four in zip(at[2], at[4], strict=True))


@pytest.mark.parametrize("base", ENCODERS)
def test_the_file_carries_the_encoders_and_a_second_loader_reads_the_same(studio, tmp_path, base):
    list(studio.run(studio.config(base, steps=2, text_encoder_learning_rate=1e-3, targets="all-linear"), tmp_path))
    adapter = checkpoint.adapter(tmp_path / "checkpoints" / "step-000002")
    for format in ("kohya", "peft"):
        file = tmp_path / f"{format}.safetensors"
        formats.write(adapter, file, format=format, dtype="fp32", metadata=completed({}, adapter, format))
        report = proof.prove(file, adapter, format)
        assert report["passed"] and report["worst_difference"] <= 1e-6
        theirs = report["loaders"][-1]
        assert theirs["run"] or "widths of the real FLUX.1" in theirs["note"], "diffusers splits fused layers of the real width only"


def test_held_out_losses_and_previews_read_the_encoders_as_they_are_now(studio, tmp_path, of_kind):
    """The denoiser stands still, so only captions that are encoded anew can change a held-out loss."""
    values = {"steps": 2, "text_encoder_learning_rate": 5e-2, "learning_rate": 1e-12, "validation_fraction": 0.4, "validation_every": 1}
    prompts = []

    def preview(c, step, folder):
        from studio.generation.conditioning import encode

        with torch.no_grad():
            prompts.append(encode(c, "a sun", "")["prompt_embeds"])
        assert not c.denoiser.training
        return iter(())

    events = list(studio.run(studio.config(**values, sample_every=1), tmp_path, preview=preview))
    losses = [event.loss for event in of_kind(events, "validation")]
    assert len(losses) == 3 and len(set(losses)) == 3
    assert len(prompts) == 2 and not torch.equal(*prompts)
