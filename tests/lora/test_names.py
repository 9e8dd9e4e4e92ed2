"""Key names at full size: every module of the real architectures, both ways, and the counts of the reference tables."""

from collections.abc import Mapping

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel

from studio.families import flux_names, get, parts, sdxl_names
from studio.lora.adapter import Adapter, LowRank
from studio.lora.formats import detect
from studio.lora.formats.names import dotted, target
from studio.lora.formats.writer import kohya_tensors

Shapes = Mapping[str, tuple[int, ...]]


@pytest.fixture(scope="module")
def full() -> dict[str, Shapes]:
    """Module path -> weight shape of the real denoisers."""
    with torch.device("meta"):
        models = {
            "sdxl": UNet2DConditionModel.from_config(parts.read_json(parts.CONFIGS / "sdxl" / "unet" / "config.json")),
            "flux": FluxTransformer2DModel.from_config(parts.read_json(parts.CONFIGS / "flux" / "transformer" / "config.json")),
        }
    return {
        name: {path: tuple(m.weight.shape) for path, m in model.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
        for name, model in models.items()
    }


def chosen(full: dict[str, Shapes], family: str, preset: str) -> list[str]:
    import re

    patterns = [re.compile(pattern) for pattern in get(family).facts.lora_targets[preset]]
    return [path for path in full[family] if any(pattern.fullmatch(path) for pattern in patterns)]


@pytest.mark.parametrize(
    ("family", "preset", "modules", "kohya"),
    [
        ("sdxl", "attention", 560, 560),
        ("sdxl", "attention+mlp", 700, 700),
        ("sdxl", "all-linear", 722, 722),
        ("sdxl", "full+conv", 788, 788),
        ("flux", "attention", 266, 114),
        ("flux", "attention+mlp", 418, 228),
        ("flux", "all-linear", 494, 304),
    ],
)
def test_presets_have_the_modules_of_the_reference(full: dict[str, Shapes], family: str, preset: str, modules: int, kohya: int) -> None:
    paths = chosen(full, family, preset)
    assert len(paths) == modules
    if family == "sdxl":
        names = {sdxl_names.to_ldm(path) for path in paths}
        assert [sdxl_names.from_ldm(sdxl_names.to_ldm(path)) for path in paths] == paths
    else:
        names = {flux_names.slot(path).name for path in paths}
        assert {part for name in names for part in flux_names.parts_of(name)} >= set(paths)
    assert len(names) == kohya
    assert all(dotted(name.replace(".", "_")) == name for name in names), "underscores can be undone"


def test_text_encoders_have_the_modules_of_the_reference() -> None:
    """CLIP-L 72, OpenCLIP bigG 192: every linear of their layers has a kohya name and comes back."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    for part, number, kind, n in (("text_encoder", "1", CLIPTextModel, 72), ("text_encoder_2", "2", CLIPTextModelWithProjection, 192)):
        config = CLIPTextConfig.from_pretrained(parts.CONFIGS / "sdxl" / part)
        with torch.device("meta"):
            model = kind(config)
        names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and ".layers." in f".{name}"]
        paths = [name if name.startswith("text_model.") else f"text_model.{name}" for name in names]
        assert len(paths) == n
        for path in paths:
            found = target(f"lora_te{number}_{path.replace('.', '_')}")
            assert found is not None and found.paths == (f"{part}.{path}",)


def test_fused_layers_of_real_width_have_the_deltas_of_their_parts() -> None:
    """One of each fused layer at rank 4: qkv of both streams and linear1, forwards and back."""
    from studio.lora.formats import flux

    generator = torch.Generator().manual_seed(0)
    for sizes in ([3072] * 3, [3072, 3072, 3072, 12288]):
        layers = [LowRank(torch.randn(4, 3072, generator=generator), torch.randn(size, 4, generator=generator), 3.0) for size in sizes]
        fused = flux.fuse(layers, sizes)
        begin = 0
        for layer, size, again in zip(layers, sizes, flux.split(fused, sizes), strict=True):
            assert isinstance(fused, LowRank) and isinstance(again, LowRank) and again.rank == 4
            rows = (fused.up[begin : begin + size] @ fused.down) * (fused.alpha / fused.rank)
            wanted = layer.delta()
            assert float((rows - wanted).norm() / wanted.norm()) <= 1e-6 and float((again.delta() - wanted).norm() / wanted.norm()) <= 1e-6
            begin += size


def test_every_linear_and_convolution_has_a_name_and_comes_back(full: dict[str, Shapes]) -> None:
    assert len(full["sdxl"]) == 794 and len(full["flux"]) == 504
    for path in full["sdxl"]:
        assert sdxl_names.is_module(path)
        for module in (
            f"unet.{path}",
            "lora_unet_" + path.replace(".", "_"),
            "lora_unet_" + sdxl_names.to_ldm(path).replace(".", "_"),
            "diffusion_model." + sdxl_names.to_ldm(path),
        ):
            found = target(module)
            assert found is not None and (found.family, found.paths) == ("sdxl", (f"unet.{path}",)), module
    for path in full["flux"]:
        slot = flux_names.slot(path)
        for module in (f"transformer.{path}", "lora_unet_" + slot.name.replace(".", "_"), "lora_transformer_" + path.replace(".", "_")):
            found = target(module)
            assert found is not None and found.family == "flux" and f"transformer.{path}" in found.paths, module


@pytest.mark.parametrize(
    ("path", "kohya"),
    [
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "input_blocks_4_1_transformer_blocks_0_attn1_to_q"),
        ("mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj", "middle_block_1_transformer_blocks_9_ff_net_0_proj"),
        ("up_blocks.1.attentions.2.transformer_blocks.1.attn2.to_out.0", "output_blocks_5_1_transformer_blocks_1_attn2_to_out_0"),
        ("down_blocks.0.resnets.1.conv1", "input_blocks_2_0_in_layers_2"),
        ("down_blocks.1.resnets.0.conv_shortcut", "input_blocks_4_0_skip_connection"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks_3_0_op"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks_2_2_conv"),
        ("mid_block.resnets.1.time_emb_proj", "middle_block_2_emb_layers_1"),
        ("conv_out", "out_2"),
        ("add_embedding.linear_2", "label_emb_0_2"),
    ],
)
def test_sdxl_names_are_those_of_the_table(path: str, kohya: str) -> None:
    """The concrete rows of sd-scripts' map."""
    assert sdxl_names.to_ldm(path).replace(".", "_") == kohya


def test_fused_rows_are_those_of_the_makers(full: dict[str, Shapes]) -> None:
    assert flux_names.rows("double_blocks.0.img_attn.qkv", 9216, 3072) == [3072] * 3
    assert flux_names.rows("single_blocks.0.linear1", 21504, 3072) == [3072, 3072, 3072, 12288]
    for path, shape in full["flux"].items():
        slot = flux_names.slot(path)
        sizes = [full["flux"][part][0] for part in slot.parts]
        assert flux_names.rows(slot.name, sum(sizes), shape[1]) == sizes


def test_the_keys_of_a_full_size_file_follow_the_grammar(full: dict[str, Shapes]) -> None:
    for family, prefix, preset, n in (("sdxl", "unet", "full+conv", 788), ("flux", "transformer", "all-linear", 304)):
        layers = {}
        for path in chosen(full, family, preset):
            shape = full[family][path]
            layers[f"{prefix}.{path}"] = LowRank(torch.zeros(1, *shape[1:]), torch.zeros(shape[0], 1, *[1] * (len(shape) - 2)), 1.0)
        tensors = kohya_tensors(Adapter(family, layers), torch.float16)
        assert len(tensors) == 3 * n
        assert all(key.count(".") == (1 if key.endswith(".alpha") else 2) for key in tensors)
        found = detect({key: tuple(tensor.shape) for key, tensor in tensors.items()})
        assert (found.format, found.family, found.confidence, found.modules) == ("kohya", family, 1.0, len(layers))


def te(number: str, module: str = "self_attn_q_proj") -> str:
    return f"lora_{number}_text_model_encoder_layers_0_{module}"


@pytest.mark.parametrize(
    ("shapes", "format", "family", "reason"),
    [
        ({te("te2") + ".lora_down.weight": (4, 1280)}, "kohya", "sdxl", "1 kohya layers"),
        ({te("te1") + ".lora_down.weight": (4, 768)}, "kohya", "", "SDXL and FLUX.1 share"),
        ({"lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight": (4, 4096)}, "kohya", "flux", "1 kohya"),
        ({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (4, 3072)}, "peft", "flux", "1 peft"),
        ({"diffusion_model.double_blocks.0.img_attn.proj.lora_A.weight": (4, 3072)}, "dotted", "flux", "1 dotted"),
        ({"unet.conv_in.down": (4, 4, 3, 3)}, "checkpoint", "sdxl", "1 checkpoint"),
        ({te("te") + ".lora_down.weight": (4, 768)}, "unknown", "", "Stable Diffusion 1"),
        ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 320)}, "unknown", "", "Stable Diffusion 1 or 2"),
        ({"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 768)}, "unknown", "", "Stable Diffusion 1 "),
        (
            {"lora_unet_single_blocks_0_linear1.lora_down.weight": (4, 6144), "lora_unet_single_blocks_0_linear1.lora_up.weight": (55296, 4)},
            "unknown",
            "",
            "another FLUX",
        ),
        ({"lora_unet_input_blocks_4_1_proj_in.oft_blocks": (4, 4, 4)}, "unknown", "", "OFT"),
        ({"conv_in.weight": (4, 4)}, "unknown", "", "is no LoRA"),
        ({"diffusion_model.blocks.0.cross_attn.q.lora_A.weight": (4, 4)}, "unknown", "", "LoRA for Wan video"),
        ({"diffusion_model.new_blocks.0.q.lora_A.weight": (4, 4)}, "unknown", "", "does not know"),
        ({}, "unknown", "", "no tensors"),
        ({"unet.conv_in.lora_A.weight": (4, 4, 3, 3), "transformer.proj_out.lora_A.weight": (4, 64)}, "peft", "", "mixes"),
    ],
)
def test_a_file_is_known_by_names_and_shapes(shapes: Shapes, format: str, family: str, reason: str) -> None:
    found = detect(shapes)
    assert (found.format, found.family) == (format, family) and reason in found.reason
