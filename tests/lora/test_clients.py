"""The rule table says what was measured with the clients' own loaders: key lists of full-size files, the counts of each client."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from safetensors.torch import save_file

from studio.families import flux_names, get, parts, sdxl_names
from studio.lora import clients
from studio.lora.clients import Verdict
from studio.lora.clients.content import content, read_alphas

Shapes = dict[str, tuple[int, ...]]
SDXL = {"ss_base_model_version": "sdxl_base_v1-0", "modelspec.architecture": "stable-diffusion-xl-v1-base/lora", "sshs_model_hash": "ab" * 32}
FLUX = {"ss_base_model_version": "flux1", "modelspec.architecture": "flux-1-dev/lora", "sshs_model_hash": "ab" * 32}
SDXL |= {"modelspec.implementation": get("sdxl").facts.implementation}
FLUX |= {"modelspec.implementation": get("flux").facts.implementation}
KOHYA = ("lora_down.weight", "lora_up.weight")
PEFT = ("lora_A.weight", "lora_B.weight")
LOADERS = ("ComfyUI", "sd-scripts", "diffusers", "Forge", "A1111", "InvokeAI")


def full_size() -> dict[str, Shapes]:
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


@pytest.fixture(scope="module")
def full() -> dict[str, Shapes]:
    return full_size()


def layer(name: str, weight: tuple[int, ...], rank: int = 4, kinds: tuple[str, str] = KOHYA, alpha: bool = True) -> Shapes:
    down, up = kinds
    found: Shapes = {f"{name}.{down}": (rank, *weight[1:]), f"{name}.{up}": (weight[0], rank, *[1] * (len(weight) - 2))}
    return {**found, f"{name}.alpha": ()} if alpha else found


def encoder(prefix: str, layers: int, width: int, kinds: tuple[str, str] = KOHYA, alpha: bool = True) -> Shapes:
    join = "_" if prefix.startswith("lora") else "."
    found: Shapes = {}
    for i in range(layers):
        for module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"):
            weight = (4 * width, width) if module.endswith("fc1") else (width, 4 * width) if module.endswith("fc2") else (width, width)
            path = f"text_model.encoder.layers.{i}.{module}"
            found |= layer(f"{prefix}{join}{path.replace('.', join)}", weight, kinds=kinds, alpha=alpha)
    return found


def t5(prefix: str) -> Shapes:
    return layer(f"{prefix}_encoder_block_0_layer_0_SelfAttention_q", (4096, 4096))


def linear(path: str) -> bool:
    return ".attentions." in path


def sdxl(full: Mapping[str, Shapes], *, spelling: str = "ldm", everything: bool = False, text: bool = True, rank: int = 4, alpha: bool = True) -> Shapes:
    found: Shapes = {}
    for path, weight in full["sdxl"].items():
        if everything or linear(path):
            name = sdxl_names.to_ldm(path) if spelling == "ldm" else path
            found |= layer("lora_unet_" + name.replace(".", "_"), weight, rank, alpha=alpha)
    return {**found, **encoder("lora_te1", 12, 768, alpha=alpha), **encoder("lora_te2", 32, 1280, alpha=alpha)} if text else found


def flux(full: Mapping[str, Shapes], *, outside: bool = False, text: bool = True, alpha: bool = True) -> Shapes:
    sums: dict[str, tuple[int, int]] = {}
    for path, weight in full["flux"].items():
        name = flux_names.slot(path).name
        if outside or "blocks." in name:
            sums[name] = (sums.get(name, (0, 0))[0] + weight[0], weight[1])
    found: Shapes = {}
    for name, weight in sums.items():
        found |= layer("lora_unet_" + name.replace(".", "_"), weight, 12 if name.endswith("qkv") else 4, alpha=alpha)
    return {**found, **encoder("lora_te1", 12, 768, alpha=alpha)} if text else found


def peft(full: Mapping[str, Shapes], family: str, *, alpha: bool = False) -> Shapes:
    found: Shapes = {}
    for path, weight in full[family].items():
        if (linear if family == "sdxl" else lambda p: "blocks." in p)(path):
            found |= layer(f"{get(family).facts.denoiser}.{path}", weight, kinds=PEFT, alpha=alpha)
    return found


def verdicts(shapes: Shapes, metadata: Mapping[str, str], **more: object) -> dict[str, Verdict]:
    return {verdict.client: verdict for verdict in clients.check(shapes, metadata, **more)}  # type: ignore[arg-type]


def row(shapes: Shapes, metadata: Mapping[str, str], **more: object) -> list[str]:
    """One word or count a client, in the order of LOADERS: ok, lost N, matched N, weak, no, n/a."""
    found = verdicts(shapes, metadata, **more)

    def word(v: Verdict) -> str:
        if v.loads in ("no", "not applicable"):
            return "no" if v.loads == "no" else "n/a"
        if v.strength is False:
            return "weak"
        return "ok" if v.matched == v.total else f"{v.matched} of {v.total}"

    return [word(found[client]) for client in LOADERS]


def dora(shapes: Shapes, axis: str) -> Shapes:
    found = dict(shapes)
    for key, shape in shapes.items():
        if key.endswith("lora_up.weight"):
            name = key.removesuffix(".lora_up.weight")
            width = shapes[f"{name}.lora_down.weight"][1]
            found[f"{name}.dora_scale"] = (shape[0], 1) if axis == "output" else (1, width)
    return found


def test_sdxl_rows_of_the_measured_table(full: dict[str, Shapes]) -> None:
    plain = sdxl(full)
    assert len(content(plain, {}).modules) == 986
    assert row(plain, SDXL) == ["ok"] * 6
    assert row(sdxl(full, spelling="diffusers"), SDXL) == ["ok"] * 6
    assert row(sdxl(full, everything=True), SDXL) == ["ok", "1052 of 1058", "ok", "ok", "ok", "ok"]
    assert row(sdxl(full, spelling="diffusers", everything=True), SDXL) == ["ok", "1052 of 1058", "1056 of 1058", "ok", "1055 of 1058", "ok"]
    assert row(sdxl(full, alpha=False), SDXL) == ["ok"] * 6
    assert row(dora(plain, "input"), SDXL) == ["ok", "weak", "weak", "ok", "ok", "ok"]
    assert row(dora(plain, "output"), SDXL) == ["weak", "weak", "weak", "weak", "weak", "weak"]


def test_alphas_that_differ_change_the_strength_in_diffusers_alone(full: dict[str, Shapes]) -> None:
    shapes = sdxl(full)
    names = [key.removesuffix(".alpha") for key in shapes if key.endswith(".alpha")]
    assert row(shapes, SDXL, alphas={name: (2.0, 2.5, 3.0)[i % 3] for i, name in enumerate(names)}) == ["ok", "ok", "weak", "ok", "ok", "ok"]
    assert row(shapes, SDXL, alphas=dict.fromkeys(names, 2.0)) == ["ok"] * 6
    only_mlp = {name: 3.0 if "_ff_net_" in name else 2.0 for name in names}
    assert row(shapes, SDXL, alphas=only_mlp) == ["ok"] * 6, "only attention is looked up under a wrong name"


def test_a_middle_is_an_error_in_two_clients(full: dict[str, Shapes]) -> None:
    tucker = sdxl(full, everything=True, text=False)
    name = "lora_unet_input_blocks_1_0_in_layers_2"
    tucker |= {f"{name}.lora_down.weight": (4, 320, 1, 1), f"{name}.lora_mid.weight": (4, 4, 3, 3)}
    assert row(tucker, SDXL) == ["ok", "no", "no", "ok", "ok", "ok"]


def test_peft_names_of_sdxl_load_in_diffusers_alone(full: dict[str, Shapes]) -> None:
    found = verdicts(peft(full, "sdxl"), SDXL)
    assert (found["ComfyUI"].loads, found["ComfyUI"].matched, found["ComfyUI"].total) == ("partly", 162, 722)
    assert "attn1.processor.to_q" in found["ComfyUI"].reasons[0]
    assert found["Forge"].loads == "no" and "1120 tensors" in found["Forge"].reasons[0] and "more than 12" in found["Forge"].reasons[0]
    assert found["A1111"].loads == "no" and found["InvokeAI"].loads == "no" and found["sd-scripts"].loads == "no"
    assert found["diffusers"].good and not clients.faults(found.values(), "peft")
    assert {fault.partition(":")[0] for fault in clients.faults(found.values(), "kohya")} == {"A1111", "Forge"}


def test_flux_rows_of_the_measured_table(full: dict[str, Shapes]) -> None:
    plain = flux(full)
    assert len(content(plain, {}).modules) == 376
    assert row(plain, FLUX) == ["ok", "ok", "ok", "ok", "n/a", "ok"]
    assert row(flux(full, outside=True, text=False), FLUX) == ["ok", "312 of 314", "304 of 314", "ok", "n/a", "no"]
    assert row(flux(full, alpha=False), FLUX) == ["ok", "no", "ok", "ok", "n/a", "ok"]
    assert row({**plain, **t5("lora_te3")}, FLUX) == ["ok", "ok", "376 of 377", "ok", "n/a", "no"]
    assert row({**plain, **t5("lora_te2")}, FLUX) == ["ok", "376 of 377", "376 of 377", "ok", "n/a", "ok"]
    assert row(peft(full, "flux"), FLUX) == ["ok", "no", "ok", "ok", "n/a", "ok"]
    assert row(peft(full, "flux", alpha=True), FLUX) == ["ok", "no", "ok", "ok", "n/a", "no"]
    assert row(dora(plain, "output"), FLUX) == ["weak", "weak", "weak", "weak", "n/a", "weak"]
    names = [key.removesuffix(".alpha") for key in plain if key.endswith(".alpha")]
    mixed = {name: float(i % 3 + 1) for i, name in enumerate(names)}
    assert row(plain, FLUX, alphas=mixed) == ["ok", "ok", "ok", "ok", "n/a", "ok"]


def test_a_file_on_the_wrong_base_changes_the_shared_encoder_or_nothing(full: dict[str, Shapes]) -> None:
    assert row(flux(full), FLUX, base="sdxl") == ["72 of 376", "72 of 376", "no", "no", "72 of 376", "no"]
    assert row(sdxl(full), SDXL, base="flux") == ["72 of 986", "72 of 986", "no", "no", "n/a", "no"]
    assert row(flux(full, text=False), FLUX, base="sdxl") == ["no"] * 6


def test_flux_peft_files_that_invokeai_cannot_take(full: dict[str, Shapes]) -> None:
    plain = peft(full, "flux")
    cases = {
        "block 0": {key: shape for key, shape in plain.items() if "transformer_blocks.0." not in key},
        "text encoder": {**plain, **encoder("text_encoder", 1, 768, PEFT, alpha=False)},
        "lacks one of q, k, v": {key: shape for key, shape in plain.items() if "transformer.transformer_blocks.5.attn.to_k" not in key},
    }
    for words, shapes in cases.items():
        found = verdicts(shapes, FLUX)
        assert found["InvokeAI"].loads == "no" and words in " ".join(found["InvokeAI"].reasons), words
        assert found["ComfyUI"].good and found["diffusers"].good, words


def test_alpha_in_the_header_is_for_diffusers_alone(full: dict[str, Shapes]) -> None:
    words = {**FLUX, "lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8})}
    assert row(peft(full, "flux"), words) == ["weak", "no", "ok", "weak", "n/a", "weak"]
    found = verdicts(peft(full, "flux", alpha=True), words)["diffusers"]
    assert found.loads == "no" and "alpha stands in the tensors and in" in found.reasons[0]


def test_a1111_wants_all_four_of_the_second_encoders_attention(full: dict[str, Shapes]) -> None:
    shapes = {key: shape for key, shape in sdxl(full).items() if not (key.startswith("lora_te2") and ("k_proj" in key or "out_proj" in key))}
    found = verdicts(shapes, SDXL)
    assert found["A1111"].loads == "partly" and found["A1111"].total - found["A1111"].matched == 64
    assert found["ComfyUI"].good and found["Forge"].good


def test_invokeai_tells_sdxl_by_certain_layers(full: dict[str, Shapes]) -> None:
    only_te1 = verdicts(encoder("lora_te1", 12, 768), SDXL, base="sdxl")
    assert only_te1["InvokeAI"].loads == "no" and only_te1["ComfyUI"].good
    mixed = {**sdxl(full), **layer("lora_unet_mid_block_attentions_0_proj_in", (1280, 1280))}
    assert "mix" in verdicts(mixed, SDXL)["InvokeAI"].reasons[0]
    other = {key: (4, 768) if "attn2_to_k.lora_down" in key else shape for key, shape in sdxl(full).items()}
    assert verdicts(other, SDXL)["InvokeAI"].loads == "no"


@pytest.mark.parametrize(
    ("metadata", "a1111", "forge", "listed"),
    [
        (SDXL, "SDXL", "SDXL", True),
        ({"format": "pt"}, "SD1", "SD1", False),
        ({}, "Unknown", "Unknown", True),
        ({"ss_v2": "True"}, "SD2", "SD2", False),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "SD1", "SDXL", False),
    ],
)
def test_the_header_alone_decides_where_web_uis_list_a_file(full: dict[str, Shapes], metadata: dict[str, str], a1111: str, forge: str, listed: bool) -> None:
    found = verdicts(sdxl(full), metadata)
    assert (found["A1111"].label, found["Forge"].label, found["A1111"].listed) == (a1111, forge, listed)
    assert found["A1111"].loads == "yes" and found["A1111"].good == listed
    assert bool([fault for fault in clients.faults(found.values(), "kohya") if fault.startswith("A1111")]) == (not listed)


def test_labels_of_the_others(full: dict[str, Shapes]) -> None:
    found = verdicts(flux(full), FLUX)
    assert (found["Forge"].label, found["InvokeAI"].label, found["LoRA Manager"].label) == ("Flux", "flux", "Flux.1 D")
    assert found["SwarmUI"].label == get("flux").facts.title and found["Civitai"].label == "chosen at upload"
    assert verdicts(sdxl(full), {"ss_base_model_version": "sdxl_1.0"})["LoRA Manager"].label == "SDXL 1.0"


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, "no sshs_model_hash"),
        ({"sshs_model_hash": "e3b0c44298fc1c149afbf4c8996fb924"}, "somebody else"),
        ({"sshs_model_hash": "12" * 32}, "not that of the tensors"),
        ({**SDXL, "ss_tag_frequency": "[1]"}, "ss_tag_frequency"),
        ({**SDXL, "ss_bucket_info": "{"}, "ss_bucket_info"),
        ({**SDXL, "ss_datasets": "{}"}, "ss_datasets"),
    ],
)
def test_headers_that_mislead_managers_and_sites(full: dict[str, Shapes], metadata: dict[str, str], words: str) -> None:
    digest = "ab" * 32
    found = verdicts(sdxl(full, text=False), metadata, digest=digest)
    assert any(words in reason for reason in found["Civitai"].reasons)
    assert any(fault.startswith("Civitai") for fault in clients.faults(found.values(), "kohya"))
    assert not verdicts(sdxl(full, text=False), SDXL, digest=digest)["Civitai"].reasons


def test_other_layers_than_lora(full: dict[str, Shapes]) -> None:
    name = "lora_unet_input_blocks_4_1_proj_in"
    loha: Shapes = {f"{name}.hada_w1_a": (640, 4), f"{name}.hada_w1_b": (4, 640), f"{name}.hada_w2_a": (640, 4), f"{name}.hada_w2_b": (4, 640)}
    assert row({**loha, **layer("lora_unet_input_blocks_7_1_transformer_blocks_2_attn1_to_q", (1280, 1280))}, SDXL) == ["ok", "no", "no", "ok", "ok", "ok"]
    flat = {**layer(name, (640, 640)), f"{name}.dora_scale": (640,)}
    assert row(flat, SDXL)[:1] == ["weak"]
    four = {f"{name}.lora_down.weight": (4, 640, 1, 1), f"{name}.lora_up.weight": (640, 4, 1, 1), f"{name}.alpha": ()}
    assert row(four, SDXL)[:2] == ["ok", "no"]


def test_files_for_no_base_here_have_no_table() -> None:
    found = clients.check({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 768)}, {}, foreign="is a LoRA for Stable Diffusion 1")
    assert {verdict.loads for verdict in found} == {"not applicable"} and found[0].reasons == ("is a LoRA for Stable Diffusion 1",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_alphas_are_read_without_torch(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"a.alpha": torch.tensor(2.5, dtype=dtype), "b.alpha": torch.tensor([8.0], dtype=dtype), "a.lora_up.weight": torch.zeros(2, 2)}, tmp_path / "f")
    assert read_alphas(tmp_path / "f") == {"a": 2.5, "b": 8.0}
