"""Every kind of layer: its delta is that of the definition, it survives files, fusing and the stack."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from studio import metadata
from studio.config.training.network import Network
from studio.errors import FormatError
from studio.families.base import Components
from studio.generation.stack import Stack
from studio.lora import adapter as layers
from studio.lora import attach, formats
from studio.lora.adapter import Adapter, Decomposed, Difference, Hadamard, Kronecker, Layer, LowRank
from studio.lora.formats import flux as fused
from studio.lora.plain import plain


def rand(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.2


def low_rank(shape: tuple[int, ...], seed: int = 0) -> LowRank:
    return LowRank(rand(3, *shape[1:], seed=seed), rand(shape[0], 3, *[1] * (len(shape) - 2), seed=seed + 1), 2.0)


def loha(shape: tuple[int, ...], seed: int = 0) -> Hadamard:
    columns = math.prod(shape[1:])
    return Hadamard(*(rand(*s, seed=seed + i) for i, s in enumerate(((shape[0], 3), (3, columns), (shape[0], 3), (3, columns)))), 2.0, shape[2:])


def lokr(shape: tuple[int, ...], seed: int = 0, whole: bool = False) -> Kronecker:
    out, into, columns = shape[0] // 2, shape[1] // 2, shape[1] // 2 * math.prod(shape[2:])
    second = (rand(out, into, *shape[2:], seed=seed + 1),) if whole else (rand(out, 3, seed=seed + 1), rand(3, columns, seed=seed + 2))
    return Kronecker((rand(2, 2, seed=seed),), second, 2.0, shape[2:])


def dora(shape: tuple[int, ...], axis: str, seed: int = 0) -> Decomposed:
    n = shape[0] if axis == "output" else shape[1]
    return Decomposed(low_rank(shape, seed), 1 + rand(n, seed=seed + 9).abs(), axis)  # type: ignore[arg-type]


SHAPES = ((8, 6), (8, 6, 3, 3), (6, 8, 1, 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_deltas_are_those_of_the_definitions(shape: tuple[int, ...]) -> None:
    one = loha(shape)
    expected = (one.w1_a @ one.w1_b) * (one.w2_a @ one.w2_b) * 2 / 3
    assert torch.allclose(one.delta(), expected.reshape(shape), atol=1e-7) and one.shape == shape and one.rank == 3
    for whole in (False, True):
        two = lokr(shape, whole=whole)
        second = two.w2[0] if whole else (two.w2[0] @ two.w2[1]).reshape(shape[0] // 2, shape[1] // 2, *shape[2:])
        rows = [torch.cat([two.w1[0][i, j] * second for j in range(2)], dim=1) for i in range(2)]
        assert torch.allclose(two.delta(), torch.cat(rows) * (1 if whole else 2 / 3), atol=1e-7) and two.shape == shape
    assert two.factor_rank == 0, "two whole factors are not scaled"


def test_cores_of_tucker_are_rebuilt() -> None:
    t1, t2 = rand(2, 2, 3, 3, seed=1), rand(2, 2, 3, 3, seed=2)
    w1_a, w1_b, w2_a, w2_b = rand(2, 8, seed=3), rand(2, 6, seed=4), rand(2, 8, seed=5), rand(2, 6, seed=6)
    one = Hadamard(w1_a, w1_b, w2_a, w2_b, 1.0, (3, 3), t1, t2)
    halves = [torch.einsum("ijkl,io,jn->onkl", t, a, b) for t, a, b in ((t1, w1_a, w1_b), (t2, w2_a, w2_b))]
    assert one.shape == (8, 6, 3, 3) and torch.allclose(one.delta(), halves[0] * halves[1] / 2, atol=1e-6)
    two = Kronecker((rand(2, 2, seed=7),), (w1_a, w1_b), 2.0, (3, 3), t1)
    assert two.shape == (16, 12, 3, 3) and torch.allclose(two.delta()[:8, :6], two.w1[0][0, 0] * halves[0], atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_dora_gives_rows_or_columns_their_lengths(shape: tuple[int, ...]) -> None:
    base = rand(*shape, seed=20)
    for axis, kept in (("output", 0), ("input", 1)):
        layer = dora(shape, axis)
        moved = base + layer.delta(base)
        norms = moved.transpose(0, kept).flatten(1).norm(dim=1)
        assert torch.allclose(norms, layer.magnitude, rtol=1e-5)
        other = base + layer.layer.delta()
        assert torch.allclose(torch.nn.functional.cosine_similarity(moved.transpose(0, kept).flatten(1), other.transpose(0, kept).flatten(1)), torch.ones(()))
    assert layers.needs_base(layer) and not layers.needs_base(layer.layer)
    zero = dora((4, 4), "output")
    dead = -zero.layer.delta()
    dead[1:] = 1
    assert torch.isfinite(zero.delta(dead)).all(), "a row that vanishes has no direction to keep"


def test_dora_is_that_of_peft() -> None:
    from peft import LoraConfig, get_peft_model

    model = torch.nn.Sequential(torch.nn.Linear(6, 8))
    base = model[0].weight.detach().clone()
    tuned = get_peft_model(model, LoraConfig(r=3, lora_alpha=2, target_modules=["0"], use_dora=True))  # type: ignore[arg-type]
    module = tuned.base_model.model[0]
    layer = dora((8, 6), "output")
    assert isinstance(layer.layer, LowRank)
    with torch.no_grad():
        module.lora_A["default"].weight.copy_(layer.layer.down)
        module.lora_B["default"].weight.copy_(layer.layer.up)
        module.lora_magnitude_vector["default"].weight.copy_(layer.magnitude)
    module.merge()
    assert torch.allclose(module.get_base_layer().weight - base, layer.delta(base), atol=1e-6)


MAKERS = {"LoHa": loha, "LoKr": lokr, "LoKr whole": lambda s, i: lokr(s, i, True), "DoRA": lambda s, i: dora(s, "output", i)}


def linear_and_convolution(c: Components) -> dict[str, tuple[int, ...]]:
    """Weights of some modules: all of an attention, and a convolution where there is one."""
    shapes = {path: tuple(m.weight.shape) for path, m in attach.module_map(c).items()}  # type: ignore[union-attr]
    wanted = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "attn1.to_q", "conv1", "conv_shortcut", "mlp.fc1")
    return {p: s for p, s in shapes.items() if p.endswith(wanted) and len(s) > 1 and not p.startswith("text_encoder_2")}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_every_kind_survives_a_kohya_file_exactly(request: pytest.FixtureRequest, tmp_path: Path, name: str, kind: str) -> None:
    """FLUX.1's parts of a LoHa or LoKr that were never one layer become a whole difference: the deltas stay, the form does not."""
    c: Components = request.getfixturevalue(name)
    made = Adapter(name, {p: MAKERS[kind](s, i) for i, (p, s) in enumerate(linear_and_convolution(c).items())})
    formats.write(made, tmp_path / "f", dtype="fp32")
    again = formats.read(tmp_path / "f")
    assert set(again.layers) == set(made.layers)
    assert max(formats.difference(again.layers[p], layer) for p, layer in made.layers.items()) <= 1e-6
    formats.verify(tmp_path / "f", made)
    if name == "sdxl":
        assert all(type(again.layers[p]) is type(layer) and again.layers[p].shape == layer.shape for p, layer in made.layers.items())
    header = metadata.read_header(tmp_path / "f")
    assert ("wd_on_output" in header.metadata) == (kind == "DoRA")
    formats.write(again, tmp_path / "g", dtype="fp32")
    if kind != "DoRA":  # of low-rank layers, the alpha that all share may be another one
        assert {k: v.tolist() for k, v in load_file(tmp_path / "g").items()} == {k: v.tolist() for k, v in load_file(tmp_path / "f").items()}


@pytest.mark.parametrize("maker", [loha, lambda s, i: lokr(s, i, True), lambda s, i: dora(s, "output", i), low_rank])
def test_a_fused_layer_comes_apart_by_rows_and_together_again(maker: object) -> None:
    whole: Layer = maker((56, 8), 3)  # type: ignore[operator]
    base = rand(56, 8, seed=1)
    parts = fused.split(whole, [8, 8, 8, 32])
    pieces = [layers.delta(part, own) for part, own in zip(parts, base.split([8, 8, 8, 32]), strict=True) if part]
    assert torch.allclose(torch.cat(pieces), layers.delta(whole, base), atol=1e-6)
    again = fused.fuse(parts, [8, 8, 8, 32])
    assert type(again) is type(whole) and again.shape == whole.shape and again.rank == whole.rank
    assert torch.allclose(layers.delta(again, base), layers.delta(whole, base), atol=1e-7)


def test_a_kronecker_layer_that_parts_do_not_divide_still_comes_apart() -> None:
    whole = Kronecker((rand(8, 2, seed=1),), (rand(7, 4, seed=2),), 1.0)
    parts = fused.split(whole, [8, 8, 8, 32])
    assert torch.allclose(torch.cat([part.delta() for part in parts if part]), whole.delta(), atol=1e-7)  # type: ignore[call-arg]
    assert fused.fuse(parts, [8, 8, 8, 32]) == whole
    assert isinstance(fused.fuse([parts[0], None, parts[2], parts[3]], [8, 8, 8, 32]), Difference)


@pytest.mark.parametrize("layer", [loha((8, 6)), lokr((8, 6)), lokr((8, 6), whole=True), dora((8, 6), "output"), dora((8, 6), "input"), low_rank((8, 6))])
def test_halves_change_places_in_every_kind(layer: Layer) -> None:
    base = rand(8, 6, seed=4)
    there = layers.delta(fused.swapped(layer), torch.cat([base[4:], base[:4]]))
    assert torch.allclose(torch.cat([there[4:], there[:4]]), layers.delta(layer, base), atol=1e-6)
    assert torch.allclose(layers.delta(fused.swapped(fused.swapped(layer)), base), layers.delta(layer, base), atol=1e-7)


def test_a_dora_by_columns_of_a_fused_layer_is_refused_with_the_way_out(tmp_path: Path) -> None:
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    layer = low_rank((24, 8))
    save_file({f"{name}.lora_down.weight": layer.down, f"{name}.lora_up.weight": layer.up, f"{name}.dora_scale": torch.ones(1, 8)}, tmp_path / "f")
    with pytest.raises(FormatError, match="couples its parts; bake it"):
        formats.read(tmp_path / "f")


def test_dora_survives_a_peft_file_and_what_it_cannot_carry_is_said(sdxl: Components, tmp_path: Path) -> None:
    shapes = linear_and_convolution(sdxl)
    made = Adapter("sdxl", {p: dora(s, "output", i) for i, (p, s) in enumerate(shapes.items())})
    formats.write(made, tmp_path / "f", format="peft", dtype="fp32")
    formats.verify(tmp_path / "f", made)
    path, shape = next(iter(shapes.items()))
    others: list[tuple[Layer, str]] = [(loha(shape), "LoHa"), (lokr(shape), "LoKr"), (dora(shape, "input"), "by columns")]
    for layer, words in [*others, (Difference(rand(*shape, seed=0)), "full difference")]:
        with pytest.raises(FormatError, match=words) as caught:
            formats.write(Adapter("sdxl", {path: layer}), tmp_path / "g", format="peft")
        assert "export as kohya" in str(caught.value)
    mixed = Adapter("sdxl", {path: dora(shape, "output"), next(p for p in shapes if p != path): low_rank(shape)})
    with pytest.raises(FormatError, match="1 of 2 layers are DoRA"):
        formats.write(mixed, tmp_path / "g", format="peft")
    assert not (tmp_path / "g").exists()


def test_biases_norms_and_embeddings_survive_a_kohya_file(sdxl: Components, flux: Components, tmp_path: Path) -> None:
    norm = "unet.down_blocks.1.attentions.0.norm"
    made = Adapter("sdxl", {norm: Difference(rand(8, seed=0)), f"{norm}.bias": Difference(rand(8, seed=1))}, {}, {"word": {"clip_l": rand(2, 8, seed=2)}})
    formats.write(made, tmp_path / "f", dtype="fp32")
    again = formats.read(tmp_path / "f")
    assert set(again.layers) == set(made.layers) and torch.equal(again.embeddings["word"]["clip_l"], made.embeddings["word"]["clip_l"])
    block = "transformer.transformer_blocks.0.attn."
    both = Adapter("flux", {f"{block}{q}{end}": Difference(rand(*s, seed=3)) for q in ("to_q", "to_v") for end, s in (("", (6, 6)), (".bias", (6,)))})
    formats.write(both, tmp_path / "g", dtype="fp32")
    again = formats.read(tmp_path / "g")
    for path in (f"{block}to_q", f"{block}to_q.bias", f"{block}to_v.bias"):
        assert formats.difference(again.layers[path], both.layers[path]) == 0
    assert formats.difference(again.layers[f"{block}to_k.bias"], None) == 0
    with pytest.raises(FormatError, match="brings new words"):
        formats.write(made, tmp_path / "h", format="peft")


def test_the_stack_applies_every_kind_at_its_strength(sdxl: Components) -> None:
    weights = attach.parameter_map(sdxl)
    linear = [path for path, weight in weights.items() if path.endswith("attn1.to_q")][:4]
    conv = next(path for path in weights if path.endswith("conv1"))
    bias = f"{conv}.bias"
    makers = [loha, lokr, lambda s: dora(s, "output"), lambda s: dora(s, "input")]
    made: dict[str, Layer] = {path: maker(tuple(weights[path].shape)) for path, maker in zip(linear, makers, strict=True)}
    made |= {conv: dora(tuple(weights[conv].shape), "output"), bias: Difference(rand(*weights[bias].shape, seed=5))}
    one, two = Adapter("sdxl", made), Adapter("sdxl", {path: low_rank(tuple(weights[path].shape), 7) for path in linear})
    before = {path: weights[path].detach().clone() for path in made}
    stack = Stack(sdxl)
    try:
        report = stack.set([(one, 0.6), (two, -0.5)])
        assert not report.warnings
        after = {path: weights[path].detach().clone() for path in made}
        for path, own in before.items():
            wanted = own + 0.6 * layers.delta(made[path], own) - (0.5 * two.layers[path].delta() if path in two.layers else 0)  # type: ignore[call-arg]
            assert torch.allclose(after[path], wanted, atol=1e-6), path
        stack.set([(two, -0.5), (one, 0.6)])
        assert all(torch.equal(weights[path], after[path]) for path in made)
    finally:
        stack.clear()
    assert all(torch.equal(weights[path], before[path]) for path in made)


def test_training_goes_on_from_layers_of_its_own_kind_only(sdxl: Components) -> None:
    attached = attach.attach(sdxl, Network(rank=4, alpha=4.0))
    try:
        path = next(p for p, m in attach.module_map(sdxl).items() if p.endswith("attn1.to_q"))
        shape = tuple(attach.module_map(sdxl)[path].weight.shape)  # type: ignore[union-attr, arg-type]
        with pytest.raises(FormatError, match="set network to loha"):
            attach.load(attached, Adapter("sdxl", {path: loha(shape)}))
    finally:
        attach.detach(sdxl)


def test_a_load_report_says_what_fits_and_which_encoders(sdxl: Components) -> None:
    shapes = {path: tuple(p.shape) for path, p in attach.parameter_map(sdxl).items()}
    text = next(path for path in shapes if path.startswith("text_encoder.") and path.endswith("fc1"))
    unet = next(path for path in shapes if path.endswith("attn1.to_q"))
    found = formats.report(Adapter("sdxl", {text: low_rank(shapes[text]), unet: low_rank((4, 4)), "unet.none": low_rank((4, 4))}), shapes)
    assert (found.matched, found.missing, found.encoders) == ((text,), ("unet.none",), ("text_encoder",)) and len(found.mismatched) == 1
    assert found.summary == "1 of 3 layers fit, 1 have no module, 1 are of another size, with text_encoder"


def test_a_dora_becomes_a_plain_lora_with_its_residual_told(sdxl: Components, tmp_path: Path) -> None:
    shapes = dict(list(linear_and_convolution(sdxl).items())[:6])
    weights = {path: attach.parameter_map(sdxl)[path].detach() for path in shapes}
    made = Adapter("sdxl", {p: dora(s, "output", i) if i else loha(s) for i, (p, s) in enumerate(shapes.items())})
    full = max(min(shape[0], math.prod(shape[1:])) for shape in shapes.values())
    for rank, most in ((full, 1e-5), (4, 1.0)):
        baked, residuals = plain(made, weights, rank)
        assert all(isinstance(layer, LowRank) and layer.rank <= rank for layer in baked.layers.values())
        for path, layer in made.layers.items():
            wanted = layers.delta(layer, weights[path])
            lost = float((baked.layers[path].delta() - wanted).norm() / wanted.norm())  # type: ignore[call-arg]
            assert lost <= most and lost == pytest.approx(residuals[path], rel=1e-2, abs=1e-4)
    formats.write(baked, tmp_path / "f", format="peft")
    with pytest.raises(FormatError, match="depends on the base"):
        plain(made, {}, 4)
