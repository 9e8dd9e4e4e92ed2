"""Claims about the loss: closed forms of pseudo-Huber and its schedules, masks, and what is weighed how."""

import math

import pytest
import torch

from studio.config.training.objective import Objective
from studio.training.losses import Loss, loss_of, mean
from studio.training.objective import Noised


def noised(target, timesteps, snr):
    zero = torch.zeros(len(target))
    return Noised(target, torch.tensor(timesteps), target, torch.ones_like(zero), torch.tensor(snr))


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 4, 8, 8, generator=generator)


def test_mse_is_the_mean_square_times_the_weight_of_the_level(pair):
    predicted, target = pair
    found = noised(target, [1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    assert torch.equal(Loss()(predicted, found), (predicted - target).square().flatten(1).mean(1))


def test_pseudo_huber_is_square_near_zero_and_straight_far_away():
    errors = torch.tensor([1e-3, 10.0, 1000.0]).view(3, 1, 1, 1)
    found = noised(torch.zeros(3, 1, 1, 1), [0.0] * 3, [1.0] * 3)
    small, medium, large = Loss("huber", 0.5, "constant")(errors, found).tolist()
    assert small == pytest.approx(1e-6, rel=1e-3)
    assert medium == pytest.approx(2 * 0.5 * (math.sqrt(100 + 0.25) - 0.5))
    assert large == pytest.approx(2 * 0.5 * 1000, rel=1e-3)


def test_a_wide_border_is_mse(pair):
    predicted, target = (x.double() for x in pair)
    found = noised(target, [1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    torch.testing.assert_close(Loss("huber", 1e3, "constant")(predicted, found), Loss()(predicted, found), rtol=1e-4, atol=1e-4)


def test_the_borders_follow_the_schedules_of_the_paper():
    """arXiv 2403.16728: exponential, exp(-alpha t) with exp(-alpha T) = c; snr, (1 - c) / (1 + sigma)^2 + c with sigma = 1 / sqrt(snr)."""
    found = noised(torch.zeros(4, 1, 1, 1), [0.0, 250.0, 500.0, 1000.0], [math.inf, 4.0, 1.0, 0.0])
    torch.testing.assert_close(Loss("huber", 0.1, "exponential").borders(found), torch.tensor([1.0, 0.1**0.25, 0.1**0.5, 0.1]))
    torch.testing.assert_close(Loss("huber", 0.1, "snr").borders(found), torch.tensor([1.0, 0.9 / 2.25 + 0.1, 0.9 / 4 + 0.1, 0.1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(Loss("huber", 0.1, "constant").borders(found), torch.full((4,), 0.1))


def test_a_mask_leaves_out_what_it_hides_and_does_not_shrink_the_loss(pair):
    predicted, target = pair
    mask = torch.zeros(3, 1, 8, 8)
    mask[0, :, :2, :2], mask[1, :, :, :4], mask[2] = 1, 1, 1
    errors = (predicted - target).square()
    expected = [errors[0, :, :2, :2].mean(), errors[1, :, :, :4].mean(), errors[2].mean()]
    found = noised(target, [1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    torch.testing.assert_close(Loss()(predicted, found, mask), torch.stack(expected))
    spoiled = predicted.clone()
    spoiled[0, :, 4:, 4:] += 100
    assert Loss()(spoiled, found, mask)[0] == Loss()(predicted, found, mask)[0]


def test_a_soft_mask_is_a_weighted_mean():
    errors = torch.tensor([[1.0, 3.0], [5.0, 7.0]]).view(1, 1, 2, 2)
    mask = torch.tensor([[1.0, 0.5], [0.25, 0.25]]).view(1, 1, 2, 2)
    assert mean(errors, mask).item() == pytest.approx((1 + 1.5 + 1.25 + 1.75) / 2)
    assert mean(errors, torch.ones(1, 1, 2, 2)).item() == mean(errors, None).item() == 4


def test_settings_choose_the_loss():
    assert loss_of(Objective()) == Loss("mse", 0.1, "snr")
    assert loss_of(Objective(loss="huber", huber_c=0.2, huber_schedule="exponential")) == Loss("huber", 0.2, "exponential")
