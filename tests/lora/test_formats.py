"""Files: what is written is read back with the same deltas, by us and by diffusers; what does not fit is refused."""

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from studio import metadata
from studio.errors import FormatError
from studio.families import get
from studio.families.base import Components
from studio.lora import attach, formats
from studio.lora.adapter import Adapter, Difference, LowRank
from studio.lora.formats import flux as flux_layers

PREFIX = {"sdxl": "unet", "flux": "transformer"}


def low_rank(shape: tuple[int, ...], rank: int, alpha: float, seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *shape[1:], generator=generator) * 0.1
    return LowRank(down, torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator) * 0.1, alpha)


def adapter_for(c: Components, targets: str, ranks: tuple[int, ...] = (4,), alphas: tuple[float, ...] = (3.0,), text: bool = False) -> Adapter:
    """Random layers over the base's modules, ranks and alphas taken in turn."""
    import re

    patterns = [re.compile(rf"{c.facts.denoiser}\.(?:{pattern})") for pattern in c.facts.lora_targets[targets]]
    if text:
        patterns.append(re.compile(r"text_encoder\.text_model\.encoder\.layers\.\d+\.(self_attn\..+_proj|mlp\.fc[12])"))
    modules = {path: m.weight.shape for path, m in attach.module_map(c).items() if any(p.fullmatch(path) for p in patterns)}
    layers = {p: low_rank(tuple(s), ranks[i % len(ranks)], alphas[i % len(alphas)], i) for i, (p, s) in enumerate(modules.items())}
    return Adapter(c.facts.name, layers)


def worst(one: Adapter, other: Adapter) -> float:
    assert one.family == other.family
    return max(formats.difference(one.layers.get(p), other.layers.get(p)) for p in {*one.layers, *other.layers})


@pytest.fixture(params=["sdxl", "flux"])
def c(request: pytest.FixtureRequest) -> Components:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.mark.parametrize("format", ["kohya", "peft"])
@pytest.mark.parametrize(("ranks", "alphas"), [((4,), (3.0,)), ((4, 5, 6), (4.0, 1.0)), ((1,), (64.0,))])
def test_every_delta_survives_a_round_trip(c: Components, tmp_path: Path, format: str, ranks: tuple[int, ...], alphas: tuple[float, ...]) -> None:
    adapter = adapter_for(c, "full+conv", ranks, alphas, text=True)
    dtypes = {"fp32": 1e-6, "fp16": 2e-3, "bf16": 1e-2} if len(ranks) > 1 else {"fp32": 1e-6}
    for dtype, tolerance in dtypes.items():
        file = tmp_path / f"{dtype}.safetensors"
        formats.write(adapter, file, format=format, dtype=dtype, metadata={"k": "v"})  # type: ignore[arg-type]
        again = formats.read(file)
        assert set(again.layers) == set(adapter.layers) and worst(adapter, again) <= tolerance
        told = formats.verify(file, adapter)
        assert told["worst_difference"] <= tolerance and told["modules"] == len(adapter.layers) and told["format"] == format


def test_ranks_come_back_from_a_fused_file(flux: Components, tmp_path: Path) -> None:
    for ranks in ((4,), (2, 3, 5)):
        adapter = adapter_for(flux, "all-linear", ranks)
        formats.write(adapter, tmp_path / "f.safetensors", dtype="fp32")
        again = formats.read(tmp_path / "f.safetensors")
        assert {p: layer.rank for p, layer in again.layers.items()} == {p: layer.rank for p, layer in adapter.layers.items()}


def test_a_kohya_file_has_one_alpha_as_a_float32_scalar_and_true_zeros(c: Components, tmp_path: Path) -> None:
    """diffusers takes the most common alpha for every attention layer, so they must not differ."""
    adapter = adapter_for(c, "attention", (4, 6), (2.0, 2.0, 5.0))
    formats.write(adapter, tmp_path / "k.safetensors", dtype="bf16")
    tensors = load_file(tmp_path / "k.safetensors")
    alphas = [tensor for key, tensor in tensors.items() if key.endswith(".alpha")]
    assert {(tensor.dtype, tensor.dim(), float(tensor)) for tensor in alphas} == {(torch.float32, 0, 2.0)}
    for key, tensor in tensors.items():
        if key.endswith("lora_up.weight"):
            down = tensors[key.replace("lora_up", "lora_down")]
            assert down.shape[0] == tensor.shape[1]
            if key.endswith("_qkv.lora_up.weight"):
                q = next(layer.rank for p, layer in adapter.layers.items() if p.endswith(("0.attn.to_q", "0.attn.add_q_proj")))
                assert (tensor[tensor.shape[0] // 3 :, : min(q, 4)] == 0).all()


def test_hashes_metadata_and_bytes_are_reproducible(c: Components, tmp_path: Path) -> None:
    adapter = adapter_for(c, "attention")
    for name in ("one", "two"):
        formats.write(adapter, tmp_path / name, metadata={"z": "1", "a": "ü"})
    content = (tmp_path / "one").read_bytes()
    assert content == (tmp_path / "two").read_bytes()
    header = metadata.read_header(tmp_path / "one")
    digest = hashlib.sha256(content[header.start :]).hexdigest()
    assert header.metadata == {"a": "ü", "z": "1", "sshs_model_hash": digest, "modelspec.hash_sha256": "0x" + digest}
    assert content[8:10] == b'{"'
    formats.write(adapter, tmp_path / "other", metadata={"more": "words"})
    assert metadata.tensor_hash(tmp_path / "other") == digest


def in_diffusers(c: Components, file: Path, adapter: Adapter) -> None:
    """The file goes through diffusers' pipeline loader: every module has the delta of ours, no module has one that we have not."""
    from peft.tuners.lora import LoraLayer

    pipe = get(c.facts.name).pipeline(c)
    pipe.load_lora_weights(str(file), adapter_name="theirs")  # type: ignore[attr-defined]
    try:
        found = {}
        for part in (c.facts.denoiser, *c.facts.text_encoders):
            model = c.parts[part]
            flat = type(model).__name__ == "CLIPTextModel" and not hasattr(model, "text_model")
            for name, module in model.named_modules():
                if isinstance(module, LoraLayer):
                    path = f"{part}.text_model.{name}" if flat else f"{part}.{name}"
                    found[path] = LowRank(
                        module.lora_A["theirs"].weight.detach(), module.lora_B["theirs"].weight.detach(), module.scaling["theirs"] * module.r["theirs"]
                    )
        assert set(found) == set(adapter.layers)
        assert max(formats.difference(found[p], layer) for p, layer in adapter.layers.items()) <= 1e-6
    finally:
        pipe.unload_lora_weights()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("ranks", "alphas"), [((4,), (3.0,)), ((4, 5, 6), (3.0, 1.5))])
def test_diffusers_uses_every_key_of_our_files_with_the_same_deltas(c: Components, tmp_path: Path, ranks: tuple[int, ...], alphas: tuple[float, ...]) -> None:
    adapter = adapter_for(c, "full+conv", ranks, alphas, text=True)
    # diffusers splits kohya's fused FLUX.1 layers at the real widths only; test_a_kohya_flux_file_of_real_width covers them.
    for format in ("kohya", "peft") if c.facts.name == "sdxl" else ("peft",):
        formats.write(adapter, tmp_path / "f.safetensors", format=format, dtype="fp32")  # type: ignore[arg-type]
        in_diffusers(c, tmp_path / "f.safetensors", adapter)


@pytest.mark.parametrize("preset", ["attention", "all-linear"])
def test_a_kohya_flux_file_of_real_width_is_split_by_diffusers_as_by_us(tmp_path: Path, preset: str) -> None:
    """Rank 4 at widths 3072 and 12288, first and last blocks, through diffusers' converter and onto a transformer on the meta device."""
    import re

    from diffusers import FluxTransformer2DModel
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

    from studio.families import parts

    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(parts.read_json(parts.CONFIGS / "flux" / "transformer" / "config.json"))
    patterns = [re.compile(pattern) for pattern in get("flux").facts.lora_targets[preset]]
    shapes = {f"transformer.{name}": tuple(m.weight.shape) for name, m in model.named_modules() if any(p.fullmatch(name) for p in patterns)}
    layers = {p: low_rank(s, 4, 3.0, i) for i, (p, s) in enumerate(shapes.items()) if re.search(r"blocks\.(0|18|37)\.", p)}
    adapter = Adapter("flux", layers)
    formats.write(adapter, tmp_path / "f.safetensors", dtype="fp32")
    theirs = _convert_kohya_flux_lora_to_diffusers(load_file(tmp_path / "f.safetensors"))
    paths = {key.rpartition(".lora_")[0] for key in theirs}
    assert paths <= {f"transformer.{name}" for name, _ in model.named_modules()} and paths >= set(layers)
    for path in paths:
        down, up = theirs[f"{path}.lora_A.weight"], theirs[f"{path}.lora_B.weight"]
        assert formats.difference(LowRank(down, up, float(down.shape[0])), layers.get(path)) <= 1e-6, path
    assert worst(formats.read(tmp_path / "f.safetensors"), adapter) <= 1e-6
    assert not formats.report(formats.read(tmp_path / "f.safetensors"), shapes).mismatched


@settings(max_examples=30, deadline=None)
@given(ranks=st.lists(st.integers(0, 5), min_size=3, max_size=4), alphas=st.lists(st.sampled_from([1.0, 2.0, 5.0]), min_size=4, max_size=4))
def test_fusing_and_splitting_undo_each_other(ranks: list[int], alphas: list[float]) -> None:
    """Any ranks, alphas and missing parts."""
    sizes = [6, 6, 6, 24][: len(ranks)]
    layers = [low_rank((size, 8), rank, alpha, i) if rank else None for i, (size, rank, alpha) in enumerate(zip(sizes, ranks, alphas, strict=False))]
    if not any(layers):
        return
    fused = flux_layers.fuse(layers, sizes)
    assert fused.rank == sum(ranks)
    expected = torch.cat([layer.delta() if layer else torch.zeros(size, 8) for layer, size in zip(layers, sizes, strict=True)])
    assert torch.allclose(fused.delta(), expected, atol=1e-6)
    for layer, again in zip(layers, flux_layers.split(fused, sizes), strict=True):
        assert formats.difference(layer, again) <= 1e-6


def test_a_fused_layer_that_was_trained_whole_is_split_by_rows() -> None:
    fused = low_rank((18, 8), 3, 1.0, 0)
    parts = flux_layers.split(fused, [6, 6, 6])
    assert torch.allclose(torch.cat([part.delta() for part in parts if part]), fused.delta(), atol=1e-7)


def test_the_last_modulation_has_its_halves_swapped(flux: Components, tmp_path: Path) -> None:
    layer = low_rank((512, 256), 2, 2.0, 0)
    adapter = Adapter("flux", {"transformer.norm_out.linear": layer})
    formats.write(adapter, tmp_path / "f", dtype="fp32")
    up = load_file(tmp_path / "f")["lora_unet_final_layer_adaLN_modulation_1.lora_up.weight"]
    assert torch.equal(up[:256], layer.up[256:]) and worst(formats.read(tmp_path / "f"), adapter) <= 1e-6


def test_full_differences_are_written_and_read(c: Components, tmp_path: Path) -> None:
    adapter = adapter_for(c, "attention")
    full = Adapter(adapter.family, {p: Difference(layer.delta()) if i % 3 == 0 else layer for i, (p, layer) in enumerate(adapter.layers.items())})
    formats.write(full, tmp_path / "f", dtype="fp32")
    assert worst(formats.read(tmp_path / "f"), adapter) <= 1e-6
    with pytest.raises(FormatError, match="export as kohya"):
        formats.write(full, tmp_path / "p", format="peft")
    assert not (tmp_path / "p").exists()


FOREIGN = {
    "kohya in diffusers' names": "lora_unet_down_blocks_1_attentions_0_proj_in.{}",
    "kohya in LDM names": "lora_unet_input_blocks_4_1_proj_in.{}",
    "dotted LDM names": "diffusion_model.input_blocks.4.1.proj_in.{}",
    "PEFT": "unet.down_blocks.1.attentions.0.proj_in.{}",
}


@pytest.mark.parametrize("key", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize(("down", "up"), [("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight"), ("lora.down.weight", "lora.up.weight")])
def test_names_of_others_are_read(tmp_path: Path, key: str, down: str, up: str) -> None:
    layer = low_rank((6, 8), 2, 1.0, 0)
    save_file({key.format(down): layer.down[:, :, None, None].clone(), key.format(up): layer.up, key.format("alpha"): torch.tensor([1.0])}, tmp_path / "f")
    again = formats.read(tmp_path / "f")
    assert list(again.layers) == ["unet.down_blocks.1.attentions.0.proj_in"] and again.family == "sdxl"
    assert formats.difference(again.layers["unet.down_blocks.1.attentions.0.proj_in"], layer) <= 1e-6


def test_alpha_is_the_rank_where_it_is_missing_and_what_peft_says_where_it_says(tmp_path: Path) -> None:
    layer = low_rank((6, 8), 4, 4.0, 0)
    path = "unet.down_blocks.1.attentions.0.proj_in"
    tensors = {f"{path}.lora_A.weight": layer.down, f"{path}.lora_B.weight": layer.up}
    stated = ((None, 4.0), ('{"unet.lora_alpha": 2}', 2.0), ('{"unet.lora_alpha": 2, "unet.use_rslora": true}', 4.0))
    patterned = '{"unet.lora_alpha": 2, "unet.alpha_pattern": {"attentions.0.proj_in": 8}}'
    for words, alpha in (*stated, (patterned, 8.0)):
        save_file(tensors, tmp_path / "f", {"lora_adapter_metadata": words} if words else None)
        assert formats.read(tmp_path / "f").layers[path].alpha == alpha


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("{", "broken JSON"),
        ("[1]", "broken JSON"),
        ('{"unet.lora_alpha": "much"}', "alpha that is no number"),
        ('{"unet.lora_alpha": -1}', "alpha that is no number"),
        ('{"unet.alpha_pattern": 7}', "no table"),
        ('{"unet.alpha_pattern": {"(a+)+$": 1}}', "regular expression, which the studio does not run"),
    ],
)
def test_a_stated_alpha_that_means_nothing_is_refused(tmp_path: Path, words: str, says: str) -> None:
    layer = low_rank((6, 8), 4, 4.0, 0)
    path = "unet.down_blocks.1.attentions.0.proj_in"
    save_file({f"{path}.lora_A.weight": layer.down, f"{path}.lora_B.weight": layer.up}, tmp_path / "f", {"lora_adapter_metadata": words})
    with pytest.raises(FormatError, match=says):
        formats.read(tmp_path / "f")


def test_an_anchored_pattern_means_the_whole_path(tmp_path: Path) -> None:
    layer = low_rank((6, 8), 4, 4.0, 0)
    paths = ["unet.down_blocks.1.attentions.0.proj_in", "unet.up_blocks.1.attentions.0.proj_in"]
    tensors = {f"{path}.lora_{k}.weight": t.clone() for path in paths for k, t in (("A", layer.down), ("B", layer.up))}
    stated = '{"unet.lora_alpha": 2, "unet.alpha_pattern": {"^attentions.0.proj_in": 8, "^up_blocks.1.attentions.0.proj_in": 6}}'
    save_file(tensors, tmp_path / "f", {"lora_adapter_metadata": stated})
    assert [formats.read(tmp_path / "f").layers[path].alpha for path in paths] == [2.0, 6.0]


def test_a_tucker_core_is_folded_into_down(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    up, core, down = (torch.randn(*shape, generator=generator) for shape in ((6, 2, 1, 1), (2, 3, 3, 3), (3, 8, 1, 1)))
    key = "lora_unet_input_blocks_1_0_in_layers_2"
    save_file({f"{key}.lora_up.weight": up, f"{key}.lora_mid.weight": core, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(2.0)}, tmp_path / "f")
    expected = torch.einsum("oi,ijkl,jn->onkl", up.flatten(1), core, down.flatten(1))
    assert torch.allclose(formats.read(tmp_path / "f").layers["unet.down_blocks.0.resnets.0.conv1"].delta(), expected, atol=1e-5)


def test_a_checkpoint_of_a_run_is_read(c: Components, tmp_path: Path) -> None:
    adapter = adapter_for(c, "attention")
    tensors = {
        f"{p}.{kind}": value for p, layer in adapter.layers.items() if isinstance(layer, LowRank) for kind, value in (("down", layer.down), ("up", layer.up))
    }
    save_file({**tensors, **{f"{p}.alpha": torch.tensor(3.0, dtype=torch.float64) for p in adapter.layers}}, tmp_path / "f")
    assert worst(formats.read(tmp_path / "f"), adapter) == 0


@pytest.fixture
def good(sdxl: Components, tmp_path: Path) -> Path:
    formats.write(adapter_for(sdxl, "attention"), tmp_path / "good.safetensors", dtype="fp32")
    return tmp_path / "good.safetensors"


def test_a_file_for_another_base_is_refused_before_anything_is_loaded(good: Path, sdxl: Components, flux: Components) -> None:
    assert formats.read(good, sdxl).family == "sdxl"
    with pytest.raises(FormatError, match=r"LoRA for sdxl, the base demo-flux is FLUX\.1"):
        formats.read(good, flux)
    adapter = formats.read(good)
    path, layer = next(iter(adapter.layers.items()))
    other = Adapter("sdxl", {**adapter.layers, path: low_rank((2048, 640), 4, 4.0, 0)})
    with pytest.raises(FormatError, match="1 of 88 layers do not fit demo-sdxl"):
        formats.require_fit("f", other, sdxl)
    assert layer.shape != (2048, 640)


def test_unknown_keys_are_counted_and_named(good: Path) -> None:
    tensors = load_file(good)
    save_file({**tensors, "lora_unet_new_thing.lora_down.weight": torch.zeros(2, 2), "stray": torch.zeros(1)}, good)
    with pytest.raises(FormatError, match=r"2 of 266 keys are unknown, first 'lora_unet_new_thing\.lora_down\.weight'"):
        formats.read(good)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t, k: t.pop(f"{k}.lora_up.weight"), "lacks its up half"),
        (lambda t, k: t.update({f"{k}.lora_up.weight": torch.zeros(96, 5)}), "do not multiply"),
        (lambda t, k: t[f"{k}.lora_up.weight"].fill_(float("nan")), "no numbers"),
        (lambda t, k: t.update({f"{k}.alpha": torch.ones(2)}), "no single number"),
        (lambda t, k: t.update({f"{k}.lora_down.weight": torch.zeros(4, 8, 3, 3)}), "is a linear layer"),
        (lambda t, k: t.update({f"{k}.dora_scale": torch.ones(1, 4)}), "DoRA magnitude of shape"),
        (lambda t, k: t[f"{k}.alpha"].fill_(-1), "negative alpha"),
        (lambda t, k: t.update({f"{k}.hada_w1_a": torch.zeros(4, 4)}), "at once"),
        (lambda t, k: t.update({f"{k}.lora_mid.weight": torch.zeros(4, 4, 9, 9)}), "core of shape"),
    ],
)
def test_a_broken_layer_is_refused(good: Path, change: object, says: str) -> None:
    tensors = load_file(good)
    key = next(key for key in tensors if key.endswith("attn1_to_q.alpha")).removesuffix(".alpha")
    change(tensors, key)  # type: ignore[operator]
    save_file(tensors, good)
    with pytest.raises(FormatError, match=says) as caught:
        formats.read(good)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(good: Path) -> None:
    good.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(FormatError, match="is cut off"):
        formats.read(good)


def test_verifying_finds_a_changed_value_a_missing_layer_and_a_wrong_hash(good: Path, sdxl: Components) -> None:
    adapter = adapter_for(sdxl, "attention")
    formats.verify(good, adapter)
    tensors = load_file(good)
    key = next(key for key in tensors if key.endswith("lora_up.weight"))
    save_file({**tensors, key: tensors[key] * 1.001}, good)
    with pytest.raises(FormatError, match="differs by 1"):
        formats.verify(good, adapter)
    module = key.removesuffix(".lora_up.weight")
    save_file({other: tensor for other, tensor in tensors.items() if not other.startswith(module + ".")}, good)
    with pytest.raises(FormatError, match="differs by 1"):
        formats.verify(good, adapter)
    save_file(tensors, good, {"sshs_model_hash": "e3b0c442"})
    with pytest.raises(FormatError, match="sshs_model_hash"):
        formats.verify(good, adapter)


def test_values_that_half_precision_cannot_hold_are_not_written(tmp_path: Path) -> None:
    layer = LowRank(torch.full((1, 8), 1e6), torch.ones(6, 1), 1.0)
    with pytest.raises(FormatError, match="export as fp32"):
        formats.write(Adapter("sdxl", {"unet.down_blocks.1.attentions.0.proj_in": layer}), tmp_path / "f")
    with pytest.raises(FormatError, match="no layers"):
        formats.write(Adapter("sdxl", {}), tmp_path / "f")
    assert not list(tmp_path.iterdir())


def test_distance_of_deltas_is_that_of_the_matrices() -> None:
    one, other = low_rank((12, 4, 3, 3), 3, 2.0, 0), low_rank((12, 4, 3, 3), 5, 1.0, 1)
    expected = (one.delta() - other.delta()).norm() / max(one.delta().norm(), other.delta().norm())
    assert formats.difference(one, other) == pytest.approx(float(expected), rel=1e-6)
    assert formats.difference(one, None) == 1.0 and formats.difference(None, None) == 0.0
