"""Every kind of network on a model: nothing at first, the delta that it states, the same bits after saving, gone without a trace."""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from studio.config import build
from studio.config.training.network import Network
from studio.errors import FormatError, SettingsError
from studio.families import get
from studio.families.base import Components
from studio.lora import attach, exact
from studio.lora.adapter import Adapter, Decomposed, Hadamard, Kronecker, LowRank, delta
from studio.lora.attach import origin

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rank_stabilized": True},
    "gaussian": {"init": "gaussian"},
    "pissa": {"init": "pissa"},
    "olora": {"init": "olora"},
    "dora": {"network": "dora"},
    "loha": {"network": "loha"},
    "lokr": {"network": "lokr"},
    "adalora": {"network": "adalora"},
}
LAYERS = {"dora": Decomposed, "loha": Hadamard, "lokr": Kronecker}


@pytest.fixture(params=["sdxl", "flux"])
def c(request: pytest.FixtureRequest) -> Iterator[Components]:
    found: Components = request.getfixturevalue(request.param)
    yield found
    attach.detach(found)


def put(c: Components, **settings: Any) -> attach.Attached:
    torch.manual_seed(3)
    return attach.attach(c, build(Network, {"rank": 4, "alpha": 3.0} | settings))


def stir(attached: attach.Attached) -> None:
    """As training might have left it."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in attached.trainable().values():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.05


def predict(c: Components) -> torch.Tensor:
    family = get(c.facts.name)
    noisy = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return family.predict(c, noisy, torch.tensor([400.0]), family.encode_captions(c, ["cat"]), torch.tensor([[64, 64, 0, 0, 64, 64]]))


def loss(c: Components) -> torch.Tensor:
    noisy = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    conditioning = {name: tensor.detach() for name, tensor in get(c.facts.name).encode_captions(c, ["cat"]).items()}
    return get(c.facts.name).predict(c, noisy, torch.tensor([400.0]), conditioning, torch.tensor([[64, 64, 0, 0, 64, 64]])).square().mean()


class Draws(TorchDispatchMode):
    """Keeps every tensor that is drawn at random meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.found.append(out.detach().clone())
        return out


def draws(c: Components, device: str, **settings: Any) -> list[torch.Tensor]:
    part = c.facts.denoiser
    here = replace(c, parts={**c.parts, part: deepcopy(c.parts[part]).to(device)}, device=torch.device(device))
    with Draws() as drawn:
        put(here, **settings)
    return drawn.found


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in origin.INITS])
def test_a_network_draws_the_same_numbers_wherever_its_base_lies(c: Components, kind: str) -> None:
    """Blocks may wait in main memory or stand on the device, which would draw others; a device without memory stands for it here."""
    near, far = (draws(c, device, **KINDS[kind]) for device in ("cpu", "meta"))
    assert {tensor.device.type for tensor in far} == {"cpu"} and any(tensor.std() > 0 for tensor in near)
    assert len(near) == len(far) and all(map(torch.equal, near, far))


def test_directions_of_the_base_are_found_from_the_same_numbers_wherever_it_lies() -> None:
    weight = torch.randn(80, 120, generator=torch.Generator().manual_seed(2))
    found = []
    for device in ("cpu", "meta"):
        torch.manual_seed(3)
        with Draws() as drawn:
            origin.pissa(weight.to(device), 4)
        found.append(drawn.found)
    assert [tensor.device.type for tensor in found[1]] == ["cpu"] and all(map(torch.equal, *found))


def test_the_directions_that_pissa_begins_from_are_the_largest() -> None:
    """To (s13 / s4) ^ (2 * 4 + 1) = 0.005 for a spectrum as flat as this one, 12 columns and 4 power iterations; 0.5 without these."""
    draw = torch.Generator().manual_seed(2)
    left, right = (torch.linalg.qr(torch.randn(n, 80, generator=draw)).Q for n in (80, 120))
    weight = left * torch.arange(1, 81).float().pow(-0.5) @ right.T
    down, up = origin.pissa(weight, 4)
    best = left[:, :4] * torch.arange(1, 5).float().pow(-0.5) @ right[:, :4].T
    assert torch.linalg.matrix_norm(up @ down - best) < 1e-2 * torch.linalg.matrix_norm(best)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_network_changes_nothing_and_leaves_the_base_bit_for_bit(c: Components, kind: str) -> None:
    before, print_before = predict(c), attach.fingerprint(c)
    attached = put(c, **KINDS[kind])
    torch.testing.assert_close(predict(c), before, atol=2e-5, rtol=1e-5)
    stir(attached)
    assert not torch.allclose(predict(c), before, atol=1e-3)
    assert attach.fingerprint(c) == print_before
    attach.detach(c)
    assert torch.equal(predict(c), before) and attach.fingerprint(c) == print_before


@pytest.mark.parametrize("targets", ["attention", "full+conv"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_computes_the_delta_that_is_collected(c: Components, kind: str, targets: str) -> None:
    attached = put(c, targets=targets, **KINDS[kind])
    stir(attached)
    with_network, adapter = predict(c), attach.collect(attached)
    assert all(isinstance(layer, LAYERS.get(kind, LowRank)) for layer in adapter.layers.values())
    attach.detach(c)
    weights = attach.parameter_map(c)
    originals = {path: weights[path].detach().clone() for path in adapter.layers}
    try:
        with torch.no_grad():
            for path, layer in adapter.layers.items():
                weights[path] += delta(layer, originals[path])
        torch.testing.assert_close(predict(c), with_network, atol=2e-4, rtol=1e-3)
    finally:
        with torch.no_grad():
            for path, weight in originals.items():
                weights[path].copy_(weight)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "adalora"])
def test_what_was_collected_comes_back_bit_for_bit(c: Components, kind: str) -> None:
    attached = put(c, targets="full+conv", **KINDS[kind])
    stir(attached)
    tensors, words = exact.flattened(attach.collect(attached))
    before = predict(c)
    attach.detach(c)
    torch.manual_seed(99)
    again = attach.attach(c, attached.network, fresh=False)
    attach.restore(again, exact.rebuilt(tensors, {**words, "family": c.facts.name}))
    other, _ = exact.flattened(attach.collect(again))
    assert all(torch.equal(other[name], tensor) for name, tensor in tensors.items()) and other.keys() == tensors.keys()
    assert torch.equal(predict(c), before)


def test_an_adalora_begins_to_learn_as_a_lora_of_its_rank(c: Components) -> None:
    """Without effect, and with the same gradient of up under the same down: what the paper's start is too slow for."""
    found = {}
    for kind in ("lora", "adalora"):
        attached = put(c, **KINDS[kind])
        ups = {name: p for name, p in attached.trainable().items() if ".lora_B." in name}
        with torch.no_grad():
            for number, p in enumerate(p for name, p in attached.trainable().items() if ".lora_A." in name):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
        assert len(ups) == len(attached.places) and not any(p.any() for p in ups.values())
        c.denoiser.zero_grad()
        loss(c).backward()
        found[kind] = {name.partition(".lora_B.")[0]: p.grad.clone() for name, p in ups.items() if p.grad is not None}
        attach.detach(c)
    assert found["lora"].keys() == found["adalora"].keys() and all(grad.any() for grad in found["lora"].values())
    for name, grad in found["lora"].items():
        torch.testing.assert_close(found["adalora"][name], grad, rtol=1e-3, atol=1e-4 * float(grad.abs().max()))


def test_the_ranks_of_a_fresh_adalora_are_apart_and_as_long_as_those_of_a_lora(c: Components) -> None:
    for kind in ("lora", "adalora"):
        lengths = []
        for module in put(c, **KINDS[kind]).modules:
            down = (module.lora_A[attach.NAME] if kind == "adalora" else module.lora_A[attach.NAME].weight).detach()
            lengths.append(down.norm(dim=1).square())
            if kind == "adalora":
                torch.testing.assert_close(down @ down.T, torch.eye(4) / 3, atol=1e-5, rtol=0)
                assert bool((module.lora_E[attach.NAME] == 1).all())
        assert float(torch.cat(lengths).mean()) == pytest.approx(1 / 3, rel=0.02)
        attach.detach(c)


def test_an_adalora_leaves_as_the_ranks_that_are_left_and_nothing_else(c: Components) -> None:
    attached = put(c, **KINDS["adalora"])
    stir(attached)
    expected = {}
    with torch.no_grad():
        for number, (place, module) in enumerate(zip(attached.places, attached.modules, strict=True)):
            down, values, up = (part[attach.NAME] for part in (module.lora_A, module.lora_E, module.lora_B))
            values[[0, 2] if number else [0, 1, 2, 3]] = 0.0
            expected[place.path] = (1 if number == 0 else 2, (up @ (values * down)).reshape(module.get_base_layer().weight.shape) * place.alpha / place.rank)
    layers = attach.collect(attached).layers
    assert layers.keys() == expected.keys()
    for path, (rank, dense) in expected.items():
        layer = layers[path]
        assert isinstance(layer, LowRank) and layer.rank == rank
        torch.testing.assert_close(layer.delta(), dense, atol=1e-6, rtol=1e-4)


def test_rank_stabilised_scaling_is_written_as_an_alpha_that_every_loader_divides_by_the_rank(sdxl: Components) -> None:
    try:
        attached = put(sdxl, rank_stabilized=True, rank=16, alpha=8.0)
        layer = next(iter(attach.collect(attached).layers.values()))
        assert layer.alpha / layer.rank == pytest.approx(8.0 / math.sqrt(16)) and attached.scale == 2.0
    finally:
        attach.detach(sdxl)


def test_blocks_have_ranks_alphas_and_rates_of_their_own(c: Components) -> None:
    pattern = "mid_block" if c.facts.name == "sdxl" else "single_transformer_blocks"
    attached = put(c, block_ranks=f"{pattern}=2", block_rates=[f"{pattern}=0.5", "to_q=3"], lora_plus_ratio=4)
    assert len(attached.places) > 2
    for path, layer in attach.collect(attached).layers.items():
        assert layer.rank == (2 if pattern in path else 4)
        assert layer.alpha / layer.rank == 0.75, "a block's rank alone leaves its strength as it is"
    rates = attached.rates()
    for name, path in attached.layer_of.items():
        own = 0.5 if pattern in path else 3.0 if path.endswith("to_q") else 1.0
        assert rates[name] == own * (4.0 if "lora_B" in name else 1.0)
    attach.detach(c)
    layers = attach.collect(put(c, block_alphas={pattern: 8})).layers
    assert {layer.alpha for path, layer in layers.items() if pattern in path} == {8.0} and {layer.alpha for layer in layers.values()} == {8.0, 3.0}


def test_a_pattern_names_layers_or_says_how_they_are_called(c: Components) -> None:
    attached = put(c, target_pattern=r"to_k$|norm1\.linear|conv1")
    assert attached.paths and all(path.endswith(("to_k", "norm1.linear", "conv1")) for path in attached.paths)
    attach.detach(c)
    with pytest.raises(SettingsError, match=rf"matches no linear or convolution layer.* called like {c.facts.denoiser}\."):
        put(c, target_pattern="to_z")
    with pytest.raises(SettingsError, match="is no regular expression"):
        put(c, target_pattern="to_(q")
    with pytest.raises(SettingsError, match="block_rates: the pattern 'to_z' matches none of"):
        put(c, block_rates=["to_z=2"])


def test_a_network_goes_on_from_a_smaller_one_of_its_kind(c: Components) -> None:
    for kind in ("lora", "dora", "loha", "adalora"):
        attached = put(c, **KINDS[kind], rank=2)
        stir(attached)
        source = attach.collect(attached)
        attach.detach(c)
        larger = put(c, **KINDS[kind], rank=6, alpha=9.0)
        attach.load(larger, source)
        weights = attach.parameter_map(c)
        for path, layer in attach.collect(larger).layers.items():
            torch.testing.assert_close(delta(layer, weights[path].detach()), delta(source.layers[path], weights[path].detach()), atol=1e-5, rtol=1e-4)
        attach.detach(c)


def test_a_dora_goes_on_from_a_plain_lora(c: Components) -> None:
    attached = put(c)
    stir(attached)
    source = attach.collect(attached)
    attach.detach(c)
    dora = put(c, network="dora")
    attach.load(dora, source)
    weights = attach.parameter_map(c)
    found = attach.collect(dora).layers  # parts of a fused layer leave as the whole of it, so that some here were not trained
    assert source.layers.keys() <= found.keys()
    for path, layer in found.items():
        expected = source.layers[path].delta() if path in source.layers else torch.zeros(layer.shape)  # type: ignore[call-arg]
        torch.testing.assert_close(delta(layer, weights[path].detach()), expected, atol=1e-5, rtol=1e-4)


def test_a_layer_of_another_kind_is_refused_with_the_kind_to_choose(sdxl: Components) -> None:
    try:
        attached = put(sdxl, network="lokr")
        stir(attached)
        source = attach.collect(attached)
        attach.detach(sdxl)
        with pytest.raises(FormatError, match="set network to lokr"):
            attach.load(put(sdxl), source)
    finally:
        attach.detach(sdxl)


def test_the_fingerprint_sees_one_bit(sdxl: Components) -> None:
    before = attach.fingerprint(sdxl)
    weight = next(iter(sdxl.denoiser.parameters()))
    kept = weight.detach().clone()
    with torch.no_grad():
        bits = weight.view(torch.int32)
        bits.view(-1)[5] ^= 1
        changed = attach.fingerprint(sdxl)
        weight.copy_(kept)
    assert changed != before and attach.fingerprint(sdxl) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "loha", "dropout": 0.1}, "dropout is for lora and dora and adalora, not for loha"),
        ({"network": "lokr", "rank_stabilized": True}, "rank_stabilized is for lora and dora"),
        ({"network": "dora", "init": "pissa"}, "init pissa is for lora"),
        ({"network": "adalora", "block_ranks": "to_q=2"}, "block_ranks is for"),
        ({"final_rank": 2}, "final_rank is for adalora, not for lora"),
        ({"network": "adalora", "rank": 4, "final_rank": 4}, "final_rank 4 takes nothing away from rank 4"),
        ({"network": "adalora", "text_encoder_learning_rate": 1e-4}, "adalora shares out ranks within the denoiser"),
        ({"text_encoder_stop": 3}, "text_encoder_stop means nothing without"),
        ({"block_ranks": "to_q=2.5"}, "2.5 is no rank"),
        ({"block_ranks": "to_q"}, "'to_q' is not PATTERN=NUMBER"),
    ],
)
def test_settings_that_do_not_belong_together_are_one_clear_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build(Network, settings)


def test_dropout_follows_from_the_item_alone() -> None:
    from studio.lora.attach.dropout import Chance, KeyedDropout, uniform

    model = torch.nn.Identity()
    chance = Chance(model)
    layer = KeyedDropout(0.25, chance, layer=3)
    x, keys = torch.ones(3, 40, 50), torch.tensor([2**62 + 5, 7, 8])
    chance.keys = keys
    whole = layer(x)
    parts = []
    for i in range(3):
        chance.keys = keys[i : i + 1]
        parts.append(layer(x[i : i + 1]))
    assert torch.equal(whole, torch.cat(parts)), "any split of a batch drops the same"
    assert not torch.equal(whole[0], whole[1]) and whole.unique().tolist() == pytest.approx([0.0, 4 / 3])
    chance.keys = keys
    assert not torch.equal(whole, KeyedDropout(0.25, chance, layer=4)(x))
    model.eval()
    assert torch.equal(layer(x), x)
    drawn = uniform(torch.arange(200), 1, 500).double() / 2**32
    assert drawn.mean() == pytest.approx(0.5, abs=0.005) and drawn.var() == pytest.approx(1 / 12, rel=0.01)
    assert abs(torch.corrcoef(torch.stack([drawn[:-1].flatten(), drawn[1:].flatten()]))[0, 1]) < 0.01


def test_an_adapter_survives_the_checkpoint_with_embeddings() -> None:
    adapter = Adapter("sdxl", {"unet.a": LowRank(torch.ones(2, 3), torch.ones(4, 2), 1.5)}, embeddings={"sks": {"clip_l": torch.ones(1, 8)}})
    tensors, words = exact.flattened(adapter)
    again = exact.rebuilt(tensors, {**words, "family": "sdxl"})
    assert again.layers["unet.a"].alpha == 1.5 and torch.equal(again.embeddings["sks"]["clip_l"], torch.ones(1, 8))
