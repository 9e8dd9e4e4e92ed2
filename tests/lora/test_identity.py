"""Key lists of foreign files: each is known for what it is, every key has its place, and headers that lie are noticed."""

import cProfile
import json
import pstats
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from studio.errors import FormatError
from studio.lora import formats
from studio.lora.adapter import LowRank
from studio.lora.formats import reader
from studio.lora.formats.identity import identify

KEYS = Path(__file__).parents[1] / "keys"
FILES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(KEYS.glob("*.json"))}
POSITIVE = {name: file for name, file in FILES.items() if not name.startswith("not-")}
NEGATIVE = {name: file for name, file in FILES.items() if name.startswith("not-")}


def shapes(file: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in file["keys"].items()}


def numbers(file: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {key: torch.rand(shape, generator=generator) * 0.01 + 0.001 for key, shape in shapes(file).items()}


def test_there_are_lists_and_each_names_its_public_source() -> None:
    assert len(POSITIVE) >= 10 and len(NEGATIVE) >= 20
    for name, file in FILES.items():
        assert len(file["source"]) > 20 and file["keys"], name


@pytest.mark.parametrize("name", POSITIVE)
def test_foreign_loras_are_known_with_every_key_in_its_place(name: str) -> None:
    file = POSITIVE[name]
    found, expects = identify(shapes(file)), file["expects"]
    assert found.readable and found.unknown == () and found.confidence == 1.0, found
    assert (found.kind, found.family, found.format) == (expects["kind"], expects["family"], expects["format"])
    assert dict(found.parts) == expects["parts"] and list(found.embeddings) == expects.get("embeddings", [])
    wanted, shown = expects["algorithm"].split(" + "), found.algorithm.split(" + ")
    assert sorted(wanted) == sorted(shown)


@pytest.mark.parametrize("name", [name for name, file in POSITIVE.items() if file["expects"].get("fits", True)])
def test_foreign_loras_are_read_whole(name: str) -> None:
    file = POSITIVE[name]
    adapter = reader.read_tensors(name, numbers(file), {})
    counted: dict[str, int] = {}
    for path in {path.removesuffix(".bias") for path in adapter.layers}:
        part = path.partition(".")[0]
        counted[part] = counted.get(part, 0) + 1
    assert counted == file["expects"]["parts"] and adapter.family == file["expects"]["family"] and adapter.unknown == ()
    assert sorted(adapter.embeddings) == file["expects"].get("embeddings", [])


def test_right_names_with_shapes_of_no_layer_are_no_fit() -> None:
    """The source's LoKr multiplies to 1024 rows of 27,648 columns, which three parts cannot share."""
    with pytest.raises(FormatError, match="rows, which"):
        reader.read_tensors("f", numbers(FILES["flux-lokr-bfl"]), {})


@pytest.mark.parametrize("name", NEGATIVE)
def test_what_is_no_lora_for_these_bases_is_named(name: str) -> None:
    file = NEGATIVE[name]
    found, expects = identify(shapes(file)), file["expects"]
    assert (found.kind, found.family) == (expects["kind"], expects["family"]) and expects["says"] in found.reasons[0], found
    assert not found.readable and "\n" not in found.reasons[0]
    assert formats.detect(shapes(file)).format == "unknown"


def test_a_header_that_lies_is_noticed_and_changes_nothing() -> None:
    flux, sdxl = shapes(FILES["flux-aitoolkit"]), shapes(FILES["sdxl-kohya-slider"])
    for keys, metadata, family, words in (
        (flux, {"ss_base_model_version": "sdxl_base_v1-0"}, "flux", "says SDXL (ss_base_model_version 'sdxl_base_v1-0'), its tensors are those of FLUX.1"),
        (sdxl, {"modelspec.architecture": "flux-1-dev/lora"}, "sdxl", "says FLUX.1"),
        (sdxl, {"ss_v2": "True"}, "sdxl", "says Stable Diffusion 2"),
        (flux, {"ss_base_model_version": "chroma"}, "flux", "says Chroma"),
    ):
        found = identify(keys, metadata)
        assert found.family == family and any(words in warning for warning in found.warnings), found.warnings
    for metadata in ({"ss_base_model_version": "sdxl_base_v1-0"}, {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, {}):
        assert identify(sdxl, metadata).warnings == ()
    assert identify(flux, {"ss_base_model_version": "flux1", "ss_v2": "False"}).warnings == ()


def test_clip_layers_alone_belong_to_the_family_that_the_header_names() -> None:
    keys = {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 768), "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": (3072, 4)}
    assert identify(keys).family == "" and identify(keys, {"ss_base_model_version": "flux1"}).family == "flux"
    assert identify(keys, {"ss_base_model_version": "sd_v1"}).family == ""


def test_old_attention_processors_are_read() -> None:
    keys = {
        f"unet.mid_block.attentions.0.transformer_blocks.9.attn2.processor.{q}_lora.{d}.weight": torch.ones((2, 8) if d == "down" else (6, 2))
        for q in ("to_q", "to_out")
        for d in ("down", "up")
    }
    adapter = reader.read_tensors("f", keys, {})
    assert sorted(adapter.layers) == [f"unet.mid_block.attentions.0.transformer_blocks.9.attn2.{q}" for q in ("to_out.0", "to_q")]
    assert identify({key: tuple(t.shape) for key, t in keys.items()}).format == "attn-procs"


def test_xlabs_single_blocks_are_the_first_part_of_a_fused_layer() -> None:
    name = "single_blocks.3.processor."
    tensors = {f"{name}{part}.{d}.weight": torch.rand(*s) for part, d, s in (("qkv_lora", "down", (2, 8)), ("qkv_lora", "up", (24, 2)))}
    tensors |= {f"{name}proj_lora.down.weight": torch.rand(2, 40), f"{name}proj_lora.up.weight": torch.rand(8, 2)}
    adapter = reader.read_tensors("f", tensors, {})
    block = "transformer.single_transformer_blocks.3."
    assert {path.removeprefix(block): layer.shape for path, layer in adapter.layers.items()} == {
        "attn.to_q": (8, 8),
        "attn.to_k": (8, 8),
        "attn.to_v": (8, 8),
        "proj_out": (8, 40),
    }
    up, down = tensors[f"{name}qkv_lora.up.weight"], tensors[f"{name}qkv_lora.down.weight"]
    layer = adapter.layers[block + "attn.to_k"]
    assert isinstance(layer, LowRank) and torch.allclose(layer.delta(), (up @ down)[8:16], atol=1e-6)


def test_unknown_keys_are_refused_or_listed() -> None:
    tensors = {**numbers(FILES["sdxl-peft"]), "unet.new_block.to_q.lora_A.weight": torch.ones(2, 2)}
    with pytest.raises(FormatError, match=r"1 of 13 keys are unknown, first 'unet\.new_block"):
        reader.read_tensors("f", tensors, {})
    adapter = reader.read_tensors("f", tensors, {}, partial=True)
    assert adapter.unknown == ("unet.new_block.to_q.lora_A.weight",) and len(adapter.layers) == 6
    told = formats.report(adapter, {path: (1280, 1280) for path in adapter.layers})
    assert told.unknown == adapter.unknown and told.summary == "6 of 6 layers fit, 1 keys are unknown"


def test_the_work_of_looking_at_a_model_grows_with_its_tensors_alone() -> None:
    """Counted in calls: twice the tensors take twice as many, so a checkpoint of fifty thousand is no trap."""

    def calls(blocks: range) -> int:
        many = {f"diffusion_model.blocks.{i}.part.{j}.lora_A.weight": (4, 4) for i in blocks for j in range(50)}
        profile = cProfile.Profile()
        assert not profile.runcall(identify, many).readable
        return pstats.Stats(profile).total_calls  # type: ignore[attr-defined]

    calls(range(1))  # what is compiled at the first look; names that were seen are kept, so each look has its own
    assert 10_000 < calls(range(100, 200)) < 2.05 * calls(range(200, 250))
