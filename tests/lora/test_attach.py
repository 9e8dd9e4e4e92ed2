"""The adapter on a model: nothing at first, what was put there later, gone without a trace."""

from collections.abc import Iterator

import pytest
import torch

from studio.config.training.network import Network
from studio.errors import FormatError
from studio.families import get
from studio.families.base import Components
from studio.lora import attach
from studio.lora.adapter import Adapter, LowRank

N = {"sdxl": {"attention": 88, "attention+mlp": 110, "all-linear": 132, "full+conv": 198}, "flux": {"attention": 31, "attention+mlp": 49, "all-linear": 58}}


@pytest.fixture(params=["sdxl", "flux"])
def c(request: pytest.FixtureRequest) -> Iterator[Components]:
    found: Components = request.getfixturevalue(request.param)
    yield found
    attach.detach(found)


def predict(c: Components) -> torch.Tensor:
    family = get(c.facts.name)
    noisy = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return family.predict(c, noisy, torch.tensor([400.0]), family.encode_captions(c, ["cat"]), torch.tensor([[64, 64, 0, 0, 64, 64]]))


def put(c: Components, **settings: object) -> attach.Attached:
    return attach.attach(c, Network.model_validate(settings))


def trained(c: Components, targets: str = "attention", rank: int = 4, alpha: float = 3.0) -> Adapter:
    attached = put(c, targets=targets, rank=rank, alpha=alpha)
    generator = torch.Generator().manual_seed(7)
    for parameter in c.denoiser.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return attach.collect(attached)


def test_each_preset_takes_the_layers_it_names_and_trains_nothing_else(c: Components) -> None:
    for targets, n in N[c.facts.name].items():
        attached = put(c, targets=targets, rank=2, alpha=2)
        paths = attached.paths
        assert len(paths) == n and set(paths) <= set(attach.module_map(c))
        named = [name for name, parameter in c.denoiser.named_parameters() if parameter.requires_grad]
        assert len(named) == 2 * n and all(".lora_" in name for name in named)
        assert set(attach.collect(attached).layers) == set(paths)
        attach.detach(c)


def test_an_attached_adapter_changes_nothing_at_first_and_nothing_when_it_is_gone(c: Components) -> None:
    before = predict(c)
    modules = {name: id(module) for name, module in c.denoiser.named_modules()}
    put(c, rank=4, alpha=4)
    assert torch.equal(predict(c), before)
    attach.detach(c)
    adapter = trained(c)
    assert not torch.allclose(predict(c), before, atol=1e-3)
    attach.detach(c)
    assert torch.equal(predict(c), before)
    assert {name: id(module) for name, module in c.denoiser.named_modules()} == modules
    assert all(layer.alpha == 3.0 and layer.rank == 4 for layer in adapter.layers.values())


def test_the_model_computes_the_delta_that_the_adapter_states(c: Components) -> None:
    adapter = trained(c)
    with_adapter = predict(c)
    attach.detach(c)
    modules = attach.module_map(c)
    originals = {path: modules[path].weight.detach().clone() for path in adapter.layers}
    with torch.no_grad():
        for path, layer in adapter.layers.items():
            modules[path].weight += layer.delta()
        baked = predict(c)
        for path, weight in originals.items():
            modules[path].weight.copy_(weight)
    assert torch.allclose(with_adapter, baked, atol=1e-4)


def test_what_is_loaded_is_what_is_collected(c: Components) -> None:
    adapter = trained(c)
    attach.detach(c)
    attached = put(c, rank=4, alpha=3.0)
    attach.load(attached, adapter)
    again = attach.collect(attached)
    for path, layer in adapter.layers.items():
        other = again.layers[path]
        assert isinstance(layer, LowRank) and isinstance(other, LowRank)
        assert torch.equal(layer.down, other.down) and torch.equal(layer.up, other.up), "the same rank and alpha: the same bits"


def test_a_smaller_adapter_keeps_its_deltas_in_a_larger_one(c: Components) -> None:
    adapter = trained(c)
    attach.detach(c)
    attached = put(c, targets="all-linear", rank=6, alpha=12.0)
    attach.load(attached, adapter)
    for path, layer in attach.collect(attached).layers.items():
        expected = adapter.layers[path].delta() if path in adapter.layers else torch.zeros(layer.shape)
        assert torch.allclose(layer.delta(), expected, atol=1e-6)


def test_an_adapter_that_does_not_fit_is_refused(c: Components) -> None:
    adapter = trained(c)
    attach.detach(c)
    attached = put(c, rank=2, alpha=2)
    with pytest.raises(FormatError, match="set rank to 4"):
        attach.load(attached, adapter)
    with pytest.raises(FormatError, match="choose a base of its family"):
        attach.load(attached, Adapter("other", adapter.layers))
    path = next(iter(adapter.layers))
    with pytest.raises(FormatError, match="choose wider targets"):
        attach.load(attached, Adapter(adapter.family, {f"{path}x": adapter.layers[path]}))


def test_adapter_weights_are_fp32_on_a_base_in_half_precision(c: Components) -> None:
    try:
        c.denoiser.to(torch.bfloat16)
        put(c, rank=2, alpha=2)
        assert {p.dtype for p in c.denoiser.parameters() if p.requires_grad} == {torch.float32}
    finally:
        attach.detach(c)
        c.denoiser.to(torch.float32)


def test_text_encoder_paths_always_name_the_text_model(c: Components) -> None:
    paths = [path for path in attach.module_map(c) if path.startswith("text_encoder.")]
    assert paths and all(path.startswith("text_encoder.text_model.") for path in paths)
