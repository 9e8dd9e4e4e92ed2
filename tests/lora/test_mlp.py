"""Claims about the frozen MLPs in 8 bits as one: they take the steps that their layers take apart, and are given back."""

import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock
from torch import nn
from torch.nn.functional import gelu

from studio.lora import attach, fused, mlp, scaled
from studio.training import lean
from tests.training.test_fast import Bench


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(scaled, "FEWEST", 32)


def prepared(*, joined: bool, **values) -> tuple[Bench, fused.Fused, int]:
    """A base in 8 bits whose adapter does something; how many MLPs were joined."""
    bench = Bench("demo-flux", "eager", **values)
    torch.manual_seed(5)
    for p in bench.stepper.weights.exact:
        torch.nn.init.normal_(p.data, std=0.05)
    made = fused.fuse(bench.subject.components.denoiser, attach.NAME)
    scaled.reduce(bench.subject.components.denoiser, made)
    return bench, made, mlp.join(bench.subject.components.denoiser, made) if joined else 0


def step(bench: Bench, made: fused.Fused) -> list[torch.Tensor]:
    """Losses and the gradients of the adapter."""
    loss = bench.stepper._losses(bench.subject.micro(64, 2, 0))
    loss.sum().backward()
    made.gather()
    found = [loss.detach(), *(grad.clone() for grad in made.gradients())]
    made.clear()
    return found


def test_an_mlp_as_one_takes_the_steps_of_its_layers_and_is_given_back():
    """To the bit, as the same plain torch runs on a CPU; with activations passed again, too."""
    (apart, theirs, _), (bench, made, n) = prepared(joined=False), prepared(joined=True)
    denoiser = bench.subject.components.denoiser
    assert n == 2 * len(denoiser.transformer_blocks) + len(denoiser.single_transformer_blocks)
    expected = step(apart, theirs)
    assert all(grad.any() for grad in expected[1:])
    for share in (0.0, 1.0):
        lean.recompute(denoiser, share)
        assert all(torch.equal(a, b) for a, b in zip(step(bench, made), expected, strict=True))
    made.undo()
    assert not any("forward" in module.__dict__ or hasattr(module, "mlp") for module in denoiser.modules())
    plain = Bench("demo-flux", "eager")
    for mine, other in zip(plain.stepper.weights.exact, bench.stepper.weights.exact, strict=True):
        mine.data.copy_(other.data)
    micro = bench.subject.micro(64, 2, 0)
    assert torch.equal(bench.stepper._losses(micro), plain.stepper._losses(micro))


def test_layers_with_a_lora_stay_apart():
    bench, _, n = prepared(joined=True, targets="all-linear")
    kinds = [module for module in bench.subject.components.denoiser.modules() if isinstance(module, FeedForward | FluxSingleTransformerBlock)]
    assert n == 0 and kinds and not any("forward" in module.__dict__ for module in kinds)


@pytest.mark.parametrize("ahead", [0, 32])
def test_gradients_go_to_what_is_passed_in_and_are_close_to_the_exact_ones(ahead):
    """Random numbers rounded to 3 bits of mantissa before two products: some 6 % of the norm."""
    torch.manual_seed(6)
    first, second = nn.Linear(64, 256).requires_grad_(False), nn.Linear(ahead + 256, 64).requires_grad_(False)
    joined = mlp.Mlp(*(scaled.Scaled(layer.weight, layer.bias) for layer in (first, second)))
    x, before = torch.randn(2, 9, 64, requires_grad=True), torch.randn(2, 9, ahead, requires_grad=True)
    given = [x, before] if ahead else [x]
    found, true = joined.forward(*given), second(torch.cat([*given[1:], gelu(first(x), approximate="tanh")], -1))
    target = torch.randn_like(true)
    gradients = [torch.autograd.grad(out, given, target) for out in (found, true)]
    for ours, theirs in zip((found, *gradients[0]), (true, *gradients[1]), strict=True):
        error = float(((ours - theirs).norm() / theirs.norm()).detach())
        assert 1e-3 < error < 0.1
    assert all(p.grad is None for layer in (first, second) for p in layer.parameters())
    if ahead:
        (alone,) = torch.autograd.grad(joined.forward(x.detach(), before), before, target)
        assert torch.equal(alone, gradients[0][1])


def test_a_block_is_traced_whole():
    bench, made, _ = prepared(joined=True)
    denoiser = bench.subject.components.denoiser
    expected = step(bench, made)
    denoiser.compile_repeated_blocks(fullgraph=True, dynamic=False, backend="aot_eager")
    for ours, theirs in zip(step(bench, made), expected, strict=True):
        assert (ours - theirs).norm() <= 1e-2 * theirs.norm()  # a number may fall on the other side when it is rounded
