"""inspect, edit and the report of an export, as a script reads them and as a person does."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.conftest import CommandLine


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """An SDXL LoRA with the header that hides it in A1111."""
    tensors = {}
    for kind in ("q", "k", "v"):
        name = f"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_{kind}"
        tensors |= {f"{name}.lora_down.weight": torch.ones(4, 640 if kind == "q" else 2048), f"{name}.lora_up.weight": torch.ones(640, 4)}
    save_file(tensors, tmp_path / "some.safetensors", {"format": "pt"})
    return tmp_path / "some.safetensors"


def test_inspect_tells_who_loads_a_file_and_whether_it_fits(studio: CommandLine, lora: Path) -> None:
    said = studio("inspect", lora, "--base", "demo-flux", "--hashes")
    assert said.code == 0, said.err
    assert "CRC32" in said.out and "fits demo-flux: no, it is a LoRA for Stable Diffusion XL" in said.out
    assert "SD1 (hidden)" in next(line for line in said.out.splitlines() if line.startswith("A1111"))
    (found,) = studio("inspect", lora, "--base", "demo-sdxl", "--json").lines
    assert not found["fit"]["fits"] and {row["client"] for row in found["clients"]} >= {"ComfyUI", "Forge", "Civitai"}


def test_editing_says_what_the_file_says_then(studio: CommandLine, lora: Path) -> None:
    (before,) = studio("inspect", lora, "--json").lines
    said = studio("library", "edit", lora, "--title", "Sun", "--trigger", "sunny", "--set", "ss_base_model_version=sdxl_base_v1-0", "--json")
    assert said.code == 0, said.err
    (after,) = studio("inspect", lora, "--json").lines
    assert after["metadata"]["modelspec.title"] == "Sun" and before["metadata"] == {"format": "pt"}
    assert after["autov3"] == before["autov3"] and after["sha256"] != before["sha256"]
    assert next(row for row in after["clients"] if row["client"] == "A1111")["listed"]
    refused = studio("library", "edit", lora, "--set", "sshs_model_hash=0")
    assert refused.code == 2 and "follows from the tensors" in refused.err


def test_an_export_reports_its_proof(hosted: CommandLine, lora: Path, tmp_path: Path) -> None:
    said = hosted("export", lora, "--output", tmp_path / "out.safetensors", "--report", "--side-files")
    assert said.code == 0, said.err
    assert "read by diffusers" in said.out and "3 layers" in said.out
    assert "SDXL" in next(line for line in said.out.splitlines() if line.startswith("A1111"))
    assert (tmp_path / "out.json").is_file() and (tmp_path / "out.civitai.md").is_file()
    report = hosted("export", lora, "--output", tmp_path / "out.safetensors", "--report", "--json").lines[-1]
    assert report["kind"] == "report" and report["passed"] and len(report["clients"]) == 9
