"""What stands guard over every kind of network: a gradient of nothing, a layer that takes no part, a base that changed, a scale that is not what is told."""

import pytest
import torch

from studio import families
from studio.config import TrainConfig
from studio.data.cache import Batch
from studio.errors import RunError
from studio.families import sources
from studio.families.base import Components
from studio.lora import attach
from studio.training.objective import Diffusion
from studio.training.step import Micro, Stepper

from .test_networks import NETWORKS

KINDS = {"lora": {}, **NETWORKS}


@pytest.fixture(scope="module")
def denoiser() -> Components:
    base = sources.find("demo-sdxl")
    return families.get(base.family).load(base, ["denoiser"], torch.float32, torch.device("cpu"))


@pytest.fixture
def stepper(denoiser, request):
    values = {"rank": 4, "alpha": 2.0, "learning_rate": 1e-3} | KINDS[request.param] | {"dropout": 0.0}
    config = TrainConfig(images="x", base="demo-sdxl", seed=1, **values)
    torch.manual_seed(1)
    attached = attach.attach(denoiser, config)
    made = Stepper(attached, families.get("sdxl"), Diffusion("epsilon", torch.linspace(0.99, 0.01, 1000)), config)
    if config.network == "adalora":
        attached.allocator = attach.Allocator.of(config, 100, made.weights.named())
    yield made
    attach.detach(denoiser)


def step() -> Micro:
    draw = torch.Generator().manual_seed(0)
    conditioning = {"prompt_embeds": torch.randn(1, 77, 256, generator=draw), "pooled_prompt_embeds": torch.randn(1, 128, generator=draw)}
    sizes = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]])
    return Micro(Batch(torch.randn(1, 16, 8, 8, generator=draw), conditioning, sizes, ("a",)), torch.randn(1, 16, 8, 8, generator=draw), torch.tensor([0.5]))


@pytest.mark.parametrize("stepper", KINDS, indirect=True)
def test_every_kind_of_network_is_guarded(stepper, monkeypatch):
    attached, c = stepper.attached, stepper.components
    before = attach.fingerprint(c)
    own = [module for place, module in zip(attached.places, attached.modules, strict=True) if place.rank == 4]
    applied = {float(module.scaling[attach.NAME]) for module in own}
    assert applied == {attached.scale}, "the scale that is told is the one that is applied"

    stepper.accumulate([step()], 1)
    assert stepper.check_gradients() < len(attached.places), "some layer moves"
    path = stepper.attached.layer_of[stepper.weights.names[-1]]
    for name, parameter in stepper.weights.named().items():
        if stepper.attached.layer_of[name] == path:
            parameter.grad = None
    with pytest.raises(RunError, match=f"1 of {len(attached.places)} layers got no gradient, first {path}"):
        stepper.check_gradients()

    stepper.weights.clear()
    assert stepper.update(stepper.accumulate([step()], 1), 1e-3).applied
    assert attach.fingerprint(c) == before, "a step leaves every bit of the base alone"
    frozen = next(p for name, p in c.denoiser.named_parameters() if attach.NAME not in name.split(".") and not p.requires_grad)
    kept = frozen.detach().clone()
    with torch.no_grad():
        frozen.view(-1)[0] += 1e-3
        changed = attach.fingerprint(c)
        frozen.copy_(kept)
    assert changed != before == attach.fingerprint(c)

    real = Stepper._losses
    monkeypatch.setattr(Stepper, "_losses", lambda self, micro: real(self, micro) * 0.0)
    stepper.accumulate([step()], 1)
    with pytest.raises(RunError, match="the first step moved no layer"):
        stepper.check_gradients()
