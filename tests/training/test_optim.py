"""Claims about optimizers and schedules."""

import pytest
import torch

from studio.config import TrainConfig
from studio.training import optim


def config(**values) -> TrainConfig:
    return TrainConfig(images="x", learning_rate=0.01, **values)


def rates(total: int, **values) -> list[float]:
    return [round(optim.learning_rate(step, total, config(**values)), 6) for step in range(1, total + 1)]


def test_schedules():
    assert rates(4) == [0.01] * 4
    assert rates(4, lr_schedule="linear") == [0.01, 0.0075, 0.005, 0.0025]
    assert rates(4, lr_schedule="cosine") == [0.01, 0.008536, 0.005, 0.001464]
    assert rates(6, lr_schedule="linear", warmup_steps=2) == [0.005, 0.01, 0.01, 0.0075, 0.005, 0.0025]


def test_warm_up_longer_than_the_run_never_reaches_the_peak():
    assert rates(3, warmup_steps=10) == [0.001, 0.002, 0.003]


def test_the_first_step_of_adamw_is_the_learning_rate():
    weight = torch.ones(3, requires_grad=True)
    opt = optim.optimizer([weight], config(weight_decay=0.0))
    weight.grad = torch.tensor([5.0, -0.1, 2.0])
    opt.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([0.99, 1.01, 0.99]))


def test_memory_given_back_goes_on_bit_for_bit():
    def step(opt, weights, n):
        for i in range(n):
            for k, weight in enumerate(weights):
                weight.grad = torch.full((3,), float(i + k - 1))
            opt.step()

    straight = [torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)]
    opt = optim.optimizer(straight, config())
    step(opt, straight, 2)
    kept = {name: tensor.clone() for name, tensor in optim.state_tensors(opt, ["a.b", "c/d"]).items()}
    resumed = [weight.detach().clone().requires_grad_() for weight in straight]
    step(opt, straight, 3)

    other = optim.optimizer(resumed, config())
    optim.load_state_tensors(other, ["a.b", "c/d"], kept)
    step(other, resumed, 3)
    for one, two in zip(straight, resumed, strict=True):
        assert torch.equal(one, two)


def test_memory_of_unknown_parameters_is_refused():
    opt = optim.optimizer([torch.ones(1, requires_grad=True)], config())
    with pytest.raises(KeyError):
        optim.load_state_tensors(opt, ["a"], {"b/exp_avg": torch.zeros(1)})
