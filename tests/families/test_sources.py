"""A base by name, and one clear line for everything that is none."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from studio.errors import BaseError, SettingsError
from studio.families import get, hub, sources


def test_both_demo_bases_ship_with_habits_and_licence() -> None:
    found = {base.name: base for base in sources.builtin()}
    assert {name: base.family for name, base in found.items()} == {"demo-sdxl": "sdxl", "demo-flux": "flux"}
    for base in found.values():
        assert base.builtin and base.title and "OFL" in base.licence and base.bytes > 1e7
        assert base.habits["train"]["resolution"] == 128 and base.habits["generate"]["width"] == 128
    assert found["demo-flux"].habits["text_tokens"] == 64


def test_a_base_is_found_by_every_kind_of_name() -> None:
    folder = sources.BUILTIN / "demo-flux"
    assert sources.find("demo-flux").name == "demo-flux"
    assert sources.find(str(folder)).path == folder
    assert sources.find("mine", {"mine": folder}).name == "mine"
    base = sources.find("demo-sdxl", vae=str(folder / "vae"), encoders="demo-flux")
    assert (base.vae, base.encoders) == (folder / "vae", folder)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nonsense", "known are demo-flux, demo-sdxl"),
        ("owner/model-that-is-not-here", "base download owner/model-that-is-not-here"),
        ("/no/such/file.safetensors", "is not known"),
    ],
)
def test_an_unknown_name_is_told_with_the_way_out(name: str, says: str) -> None:
    with pytest.raises(BaseError, match=says) as caught:
        sources.find(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["cond_stage_model.transformer.text_model.x", "model.diffusion_model.input_blocks.0.0.weight"], "Stable Diffusion 1 or 2"),
        (["lora_unet_input_blocks_4_1_proj_in.lora_down.weight"], "is a LoRA"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], "is a VAE"),
        (["double_blocks.0.img_attn.qkv.weight"], "FLUX transformer of another kind"),
        (["something"], "supported are Stable Diffusion XL and FLUX.1"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_line(tmp_path: Path, keys: list[str], says: str) -> None:
    file = tmp_path / "other.safetensors"
    save_file({key: torch.zeros(1) for key in keys}, file)
    with pytest.raises(BaseError, match=says) as caught:
        sources.identify(file)
    assert "\n" not in str(caught.value)


def test_a_pickle_an_empty_folder_and_a_truncated_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    whole = (sources.BUILTIN / "demo-sdxl" / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    for name, says in (("model.ckpt", "can run code"), ("empty", "no model_index.json"), ("cut.safetensors", "cut off")):
        with pytest.raises(BaseError, match=says):
            sources.identify(tmp_path / name)


def test_a_folder_that_lacks_a_part_is_told_when_it_is_loaded(tmp_path: Path) -> None:
    import shutil

    shutil.copytree(sources.BUILTIN / "demo-sdxl", tmp_path / "b", ignore=shutil.ignore_patterns("vae"))
    base = sources.identify(tmp_path / "b")
    with pytest.raises(BaseError, match=r"vae/config\.json"):
        get("sdxl").load(base, ("vae",), torch.float32, torch.device("cpu"))


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(SettingsError, match="known are sdxl, flux"):
        get("sd3")


def test_the_web_process_can_ask_about_bases_without_torch() -> None:
    act = "from studio.families import sources; from studio.lora import formats, provenance; sources.builtin()"
    code = f"import sys; {act}; print({{'torch', 'diffusers'}} & {{*sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=sources.BUILTIN.parents[1])
    assert run.stdout.strip() == "set()"


def test_a_download_takes_one_copy_of_every_part() -> None:
    sizes = {
        "model_index.json": 1,
        "sd_xl_base_1.0.safetensors": 9,
        "unet/config.json": 1,
        "unet/diffusion_pytorch_model.safetensors": 9,
        "unet/diffusion_pytorch_model.fp16.safetensors": 5,
        "unet/model.onnx": 9,
        "text_encoder/model.fp16.safetensors": 5,
        "text_encoder/pytorch_model.bin": 9,
        "vae_1_0/diffusion_pytorch_model.safetensors": 9,
        "tokenizer/merges.txt": 1,
        "tokenizer_2/spiece.model": 1,
        "teaser.png": 3,
    }
    assert set(hub.wanted(sizes)) == {
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/merges.txt",
        "tokenizer_2/spiece.model",
    }


def test_what_the_hub_answers_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import HfApi, errors

    def answer(error: BaseException) -> None:
        def raising(*args: object, **kwargs: object) -> None:
            raise error

        monkeypatch.setattr(HfApi, "model_info", raising)

    gated = errors.GatedRepoError.__new__(errors.GatedRepoError)
    missing = errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError)
    for error, says in ((gated, "accept its licence"), (missing, "no such model"), (ConnectionError("refused"), "cannot be reached")):
        answer(error)
        with pytest.raises(BaseError, match=says) as caught:
            sources.download("owner/model", tmp_path / "into")
        assert "\n" not in str(caught.value)
