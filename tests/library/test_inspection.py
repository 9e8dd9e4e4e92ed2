"""What is said of a file that somebody brings, and what editing its header may change."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from studio.config import BaseChoice
from studio.errors import FormatError, InputError
from studio.metadata import read_header, tensor_hash
from studio.workspace import Workspace


@pytest.fixture
def studio(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "data")


def lora(
    path: Path, module: str = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", width: int = 2048, words: dict[str, str] | None = None
) -> Path:
    tensors = {"lora_down.weight": torch.ones(4, width), "lora_up.weight": torch.ones(640, 4), "alpha": torch.tensor(2.0)}
    save_file({f"{module}.{name}": tensor for name, tensor in tensors.items()}, path, words)
    return path


def test_a_file_is_told_with_its_clients_and_hashes(studio: Workspace, tmp_path: Path) -> None:
    found = studio.library.inspect(lora(tmp_path / "f.safetensors", words={"format": "pt"}), rare_hashes=True)
    assert (found["kind"], found["family"], found["algorithm"], found["ranks"], found["parts"]) == ("lora", "sdxl", "LoRA", [4], {"unet": 1})
    assert {"SHA256", "AutoV1", "AutoV2", "AutoV3", "CRC32"} <= set(found["hashes"])
    a1111 = next(row for row in found["clients"] if row["client"] == "A1111")
    assert (a1111["loads"], a1111["label"], a1111["listed"]) == ("yes", "SD1", False)
    assert json.loads(json.dumps(found)) == found


def test_it_is_said_whether_it_fits_a_base(studio: Workspace, tmp_path: Path) -> None:
    base = studio.bases.resolve(BaseChoice(base="demo-sdxl"))
    wide = studio.library.inspect(lora(tmp_path / "wide.safetensors"), base)["fit"]
    assert not wide["fits"] and "none of its 1 layers fits" in wide["reason"] and wide["mismatched"] == 1
    flux = lora(tmp_path / "flux.safetensors", "lora_unet_double_blocks_0_img_attn_proj", 3072)
    assert "is a LoRA for FLUX.1, demo-sdxl is Stable Diffusion XL" in studio.library.inspect(flux, base)["fit"]["reason"]
    sd1 = studio.library.inspect(lora(tmp_path / "sd1.safetensors", "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 768), base)
    assert not sd1["readable"] and "Stable Diffusion 1" in sd1["fit"]["reason"] and sd1["clients"] == []
    header = read_header(base.path / "unet" / "diffusion_pytorch_model.safetensors").shapes
    path, shape = next((name.removesuffix(".weight"), shape) for name, shape in header.items() if name.endswith("attn1.to_q.weight"))
    fitting = {f"unet.{path}.lora_A.weight": torch.ones(2, shape[1]), f"unet.{path}.lora_B.weight": torch.ones(shape[0], 2)}
    save_file(fitting, tmp_path / "fits.safetensors")
    assert studio.library.inspect(tmp_path / "fits.safetensors", base)["fit"]["reason"] == "all 1 layers fit"


def test_other_files_are_named(studio: Workspace, tmp_path: Path) -> None:
    save_file({"first_stage_model.decoder.conv_in.weight": torch.ones(1), "decoder.conv_in.weight": torch.ones(2)}, tmp_path / "v.safetensors")
    assert not studio.library.inspect(tmp_path / "v.safetensors")["readable"]
    for content in (b"\x80\x02}q\x00.", b"<!DOCTYPE html><html><body>Not found</body></html>"):
        (tmp_path / "x.safetensors").write_bytes(content + b" " * 64)
        with pytest.raises(FormatError, match=r"x\.safetensors"):
            studio.library.inspect(tmp_path / "x.safetensors")


def test_editing_keeps_every_tensor_byte_and_the_library_follows(studio: Workspace, tmp_path: Path) -> None:
    row = studio.library.add(lora(tmp_path / "f.safetensors", words={"ss_steps": "10", "note": "from /home/somebody/secret place/file.txt"}))
    path = studio.library.path(row.id)
    before = path.read_bytes()[read_header(path).start :], tensor_hash(path)
    Image.new("RGB", (300, 400), "red").save(tmp_path / "p.png")
    words = studio.library.edit(row.name, {"trigger": "zqx", "title": "Red", "default_weight": "0.8", "ss_steps": None}, tmp_path / "p.png")
    assert (path.read_bytes()[read_header(path).start :], tensor_hash(path)) == before
    assert dict(read_header(path).metadata) == words and "ss_steps" not in words
    assert (words["modelspec.trigger_phrase"], words["modelspec.lora_default_weight"]) == ("zqx", "0.8")
    assert words["modelspec.thumbnail"].startswith("data:image/jpeg;base64,") and words["sshs_model_hash"] == before[1]
    assert "somebody" not in json.dumps(words)
    after = studio.library.show(row.id)
    assert after.trigger == "zqx" and after.sha256 != row.sha256 and after.autov3 == row.autov3


@pytest.mark.parametrize("changes", [{"sshs_model_hash": "0"}, {"a b": "1"}, {"default_weight": "much"}, {}])
def test_what_cannot_be_edited_is_refused(studio: Workspace, tmp_path: Path, changes: dict[str, str]) -> None:
    file = lora(tmp_path / "f.safetensors")
    before = file.read_bytes()
    with pytest.raises(InputError):
        studio.library.edit(str(file), changes)
    assert file.read_bytes() == before
