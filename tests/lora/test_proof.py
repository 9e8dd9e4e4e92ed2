"""A file is proven before it is given away: by our reader, by diffusers' loader, by the rules of other programs. Bad files fail."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from studio.families import get, parts
from studio.lora import crosscheck, formats, proof
from studio.lora.adapter import Adapter, Decomposed, LowRank
from studio.lora.header import completed
from studio.metadata import hash_entries, read_header, rewrite_metadata, tensor_hash


def layer(shape: tuple[int, ...], rank: int, alpha: float, seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *shape[1:], generator=generator) * 0.02
    return LowRank(down, torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator) * 0.02, alpha)


def full_size(family: str, pattern: str, ranks: tuple[int, ...] = (4,), alphas: tuple[float, ...] = (2.0,)) -> Adapter:
    """An adapter for some modules of the real model."""
    part = get(family).facts.denoiser
    model = crosscheck._model(parts.CONFIGS / family / part, encoder=False)
    shapes = {name: tuple(m.weight.shape) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    chosen = {name: shape for name, shape in shapes.items() if re.fullmatch(pattern, name)}
    assert chosen
    return Adapter(family, {f"{part}.{n}": layer(s, ranks[i % len(ranks)], alphas[i % len(alphas)], i) for i, (n, s) in enumerate(chosen.items())})


SDXL = r"down_blocks\.2\.attentions\.0\.transformer_blocks\.[0-2]\..+\.(to_[qkv]|to_out\.0|proj|2)|mid_block\.resnets\.0\.conv1"
FLUX = r"(single_)?transformer_blocks\.(0|18|37)\.(attn\.(to|add)_.+|ff\..+(proj|2)|proj_mlp|proj_out|norm\.linear)"


@pytest.mark.parametrize(("family", "pattern"), [("sdxl", SDXL), ("flux", FLUX)])
@pytest.mark.parametrize("format", ["kohya", "peft"])
def test_full_size_files_pass_in_both_readers(tmp_path: Path, family: str, pattern: str, format: str) -> None:
    """Mixed ranks and alphas, real widths: diffusers' loader puts every layer into the real architecture at the trained strength."""
    adapter = full_size(family, pattern, (4, 6), (3.0, 2.0, 5.0))
    path = tmp_path / "f.safetensors"
    formats.write(adapter, path, format=format, dtype="fp32", metadata=completed({}, adapter, "f"))  # type: ignore[arg-type]
    report = proof.prove(path, adapter, format)
    assert report["passed"] and not report["faults"] and not report["notes"], report["faults"]
    ours, theirs = report["loaders"]
    assert ours["run"] and theirs["run"] and theirs["modules"] == len(adapter.layers) == ours["modules"]
    assert max(ours["worst"], theirs["worst"]) <= 1e-6
    assert json.loads(json.dumps(report)) == report


def test_a_wrong_strength_in_diffusers_is_caught(tmp_path: Path) -> None:
    """Two alphas in one kohya file, which our writer never makes: the deltas are right for us and wrong for diffusers, and both checks say so."""
    adapter = full_size("sdxl", SDXL, (4,), (2.0,))
    path = tmp_path / "f.safetensors"
    formats.write(adapter, path, dtype="fp32", metadata=completed({}, adapter, "f"))
    tensors = load_file(path)
    name = next(key.removesuffix(".alpha") for key in tensors if key.endswith("attn1_to_q.alpha"))
    tensors[f"{name}.alpha"] *= 2
    tensors[f"{name}.lora_up.weight"] /= 2
    words = dict(read_header(path).metadata)
    save_file(tensors, path, words)
    rewrite_metadata(path, {**words, **hash_entries(tensor_hash(path))})
    report = proof.prove(path, adapter, "kohya")
    assert report["worst_difference"] <= 1e-6 and not report["passed"]
    assert any(fault.startswith("diffusers") and "attn1.to_q" in fault for fault in report["faults"])
    assert not next(row for row in report["clients"] if row["client"] == "diffusers")["strength"]


def test_a_changed_tensor_and_a_lying_hash_fail(tmp_path: Path) -> None:
    adapter = full_size("sdxl", r"mid_block\.attentions\.0\.transformer_blocks\.[0-2]\.attn2\.to_[qkv]")
    path = tmp_path / "f.safetensors"
    formats.write(adapter, path, metadata=completed({}, adapter, "f"))
    other = Adapter("sdxl", {p: layer(tuple(a.shape), 4, 2.0, 99) for p, a in adapter.layers.items()})
    assert "differs by" in proof.prove(path, other, "kohya")["faults"][0]
    rewrite_metadata(path, {**read_header(path).metadata, "sshs_model_hash": "0" * 64})
    assert not proof.prove(path, adapter, "kohya")["passed"]


def test_a_header_that_hides_the_file_fails(tmp_path: Path) -> None:
    """PEFT's only entry makes A1111 take an SDXL LoRA for Stable Diffusion 1."""
    adapter = full_size("sdxl", r"mid_block\.attentions\.0\.transformer_blocks\.[0-2]\.attn2\.to_[qkv]")
    formats.write(adapter, tmp_path / "f.safetensors", metadata={"format": "pt"})
    report = proof.prove(tmp_path / "f.safetensors", adapter, "kohya")
    assert [fault for fault in report["faults"] if fault.startswith("A1111")]


def test_what_diffusers_was_not_run_on_is_said(tmp_path: Path) -> None:
    small = Adapter("flux", {f"transformer.transformer_blocks.0.attn.to_{x}": layer((96, 96), 4, 2.0, i) for i, x in enumerate("qkv")})
    formats.write(small, tmp_path / "f.safetensors", metadata=completed({}, small, "f"))
    theirs = proof.prove(tmp_path / "f.safetensors", small, "kohya")["loaders"][1]
    assert not theirs["run"] and "not run: splits fused layers at the widths of the real FLUX.1 only" in theirs["note"]
    dora = Adapter("sdxl", {"unet.mid_block.attentions.0.proj_in": Decomposed(layer((1280, 1280), 4, 2.0, 0), torch.ones(1280))})
    formats.write(dora, tmp_path / "d.safetensors", metadata=completed({}, dora, "d"))
    report = proof.prove(tmp_path / "d.safetensors", dora, "kohya")
    assert not report["loaders"][1]["run"] and "DoRA" in report["loaders"][1]["note"]
    comfy = next(row for row in report["clients"] if row["client"] == "ComfyUI")
    assert comfy["strength"] is False and comfy["inherent"] and not any(fault.startswith("ComfyUI") for fault in report["faults"])
