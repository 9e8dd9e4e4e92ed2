"""Single-file bases: the same tensors as the diffusers folder they came from, and as diffusers' own converters make of them."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from studio.errors import BaseError
from studio.families import checkpoints, parts, single, sources
from studio.families.base import Components

ALL = ("denoiser", "vae", "text")


def with_text_model(state: dict[str, Any]) -> dict[str, Any]:
    return state if any(name.startswith("text_model.") for name in state) else {f"text_model.{name}": tensor for name, tensor in state.items()}


def sdxl_checkpoint(c: Components) -> dict[str, torch.Tensor]:
    found = {
        checkpoints.UNET: checkpoints.unet_to_ldm(c.parts["unet"].state_dict()),
        checkpoints.VAE: checkpoints.vae_to_ldm(c.parts["vae"].state_dict()),
        checkpoints.CLIP: with_text_model(c.parts["text_encoder"].state_dict()),
        checkpoints.OPEN_CLIP: checkpoints.hf_to_open_clip(with_text_model(c.parts["text_encoder_2"].state_dict())),
    }
    return {prefix + name: tensor.contiguous().clone() for prefix, state in found.items() for name, tensor in state.items()}


@pytest.fixture(scope="module")
def sdxl_file(sdxl: Components, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("sdxl") / "model.safetensors"
    save_file({**sdxl_checkpoint(sdxl), checkpoints.CLIP + "text_model.embeddings.position_ids": torch.arange(77)[None]}, file)
    return file


@pytest.fixture(scope="module")
def flux_file(flux: Components, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("flux") / "model.safetensors"
    save_file({name: tensor.contiguous().clone() for name, tensor in checkpoints.flux_to_original(flux.denoiser.state_dict()).items()}, file)
    return file


def same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    expected, found = one.state_dict(), other.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_an_sdxl_checkpoint_loads_as_the_folder_it_came_from(sdxl: Components, sdxl_file: Path) -> None:
    base = sources.identify(sdxl_file)
    assert (base.family, base.kind) == ("sdxl", "file")
    found = single.load_sdxl(base, ALL, torch.float32, configs=sdxl.base.path)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        same(sdxl.parts[name], found[name])
    ids = torch.arange(10)[None]
    assert torch.equal(found["text_encoder"](ids)[0], sdxl.parts["text_encoder"](ids)[0]), "buffers that are in no file are right too"


def test_diffusers_reads_the_same_from_the_checkpoint(sdxl: Components, sdxl_file: Path) -> None:
    """The name tables are checked against an independent reader."""
    for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")):
        same(sdxl.parts[part], kind.from_single_file(str(sdxl_file), config=str(sdxl.base.path), subfolder=part, local_files_only=True))


def test_marker_tensors_make_a_v_prediction_base(sdxl: Components, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in sdxl_checkpoint(sdxl).items() if "label_emb" in name or "ln_final" in name}
    save_file({**state, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, tmp_path / "v.safetensors")
    base = sources.identify(tmp_path / "v.safetensors")
    assert base.habits["objective"] == "v"
    config = single.load_sdxl(base, (), torch.float32)["scheduler"].config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)


def test_a_flux_transformer_file_takes_the_rest_from_elsewhere(flux: Components, flux_file: Path) -> None:
    base = sources.find(str(flux_file), encoders="demo-flux")
    assert base.family == "flux"
    found = single.load_flux(base, ALL, torch.float32, configs=flux.base.path)
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        same(flux.parts[name], found[name])
    assert "tokenizer_2" in found


def test_a_flux_file_without_encoders_says_how_to_name_them(flux_file: Path) -> None:
    with pytest.raises(BaseError, match="--encoders"):
        single.load_flux(sources.identify(flux_file), ("text",), torch.float32)


def test_a_file_of_another_size_or_with_missing_tensors_is_told(sdxl: Components, sdxl_file: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseError, match="of another size"):
        single.load_sdxl(sources.identify(sdxl_file), ("vae",), torch.float32)
    state = sdxl_checkpoint(sdxl)
    state.pop(checkpoints.VAE + "decoder.conv_in.bias")
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(BaseError, match="1 tensors of AutoencoderKL are missing"):
        single.load_sdxl(sources.identify(tmp_path / "less.safetensors"), ("vae",), torch.float32, configs=sdxl.base.path)


@pytest.mark.parametrize("names", ["original", "diffusers"])
def test_another_vae_is_a_file_or_a_folder(sdxl: Components, tmp_path: Path, names: str) -> None:
    state = {name: tensor * 0.5 for name, tensor in sdxl.parts["vae"].state_dict().items()}
    save_file({n: t.contiguous() for n, t in (checkpoints.vae_to_ldm(state) if names == "original" else state).items()}, tmp_path / "vae.safetensors")
    found = parts.read_vae(sdxl.base.path, tmp_path / "vae.safetensors", sdxl.base.path / "vae")
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in state.items())
    base = dataclasses.replace(sdxl.base, vae=sources.BUILTIN / "demo-flux" / "vae")
    assert base.vae is not None
    same(parts.read_vae(base.path, base.vae, base.path / "vae"), parts.read_vae(sources.BUILTIN / "demo-flux", None, base.path))


def test_full_size_names_cover_every_tensor() -> None:
    """Real widths on the meta device: the shipped architectures, and FLUX.1 through diffusers' own converter."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(parts.read_json(parts.CONFIGS / "sdxl" / "unet" / "config.json"))
        vae = AutoencoderKL.from_config(parts.read_json(parts.CONFIGS / "sdxl" / "vae" / "config.json"))
        clip = CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(parts.CONFIGS / "sdxl" / "text_encoder_2"))
        transformer = FluxTransformer2DModel.from_config(parts.read_json(parts.CONFIGS / "flux" / "transformer" / "config.json"))
    assert len(unet.state_dict()) == 1680 and len(checkpoints.flux_to_original(transformer.state_dict())) == 780
    for model, there, back in (
        (unet, checkpoints.unet_to_ldm, checkpoints.unet_from_ldm),
        (vae, checkpoints.vae_to_ldm, checkpoints.vae_from_ldm),
        (clip, checkpoints.hf_to_open_clip, checkpoints.open_clip_to_hf),
        (transformer, checkpoints.flux_to_original, checkpoints.flux_from_original),
    ):
        state = model.state_dict()
        again = back(there(state))
        assert {name: tensor.shape for name, tensor in again.items()} == {name: tensor.shape for name, tensor in state.items()}
    theirs = convert_flux_transformer_checkpoint_to_diffusers(dict(checkpoints.flux_to_original(transformer.state_dict())))
    assert {name: tensor.shape for name, tensor in theirs.items()} == {name: tensor.shape for name, tensor in transformer.state_dict().items()}
    original = checkpoints.unet_to_ldm(unet.state_dict())
    assert original["label_emb.0.0.weight"].shape == (1280, 2816) and original["input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight"].shape == (640, 2048)


def test_the_shipped_tokenizer_is_clips() -> None:
    """Ids as OpenAI's CLIP gives them; the second encoder of SDXL pads with `!`."""
    first, second = single._tokenizer(Path("none"), "<|endoftext|>"), single._tokenizer(Path("none"), "!")
    expected = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert first("a photo of a cat", padding="max_length", max_length=9).input_ids == [*expected, 49407, 49407]
    assert second("A photo of a CAT", padding="max_length", max_length=9).input_ids == [*expected, 0, 0]
