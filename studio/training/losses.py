"""From a prediction and its target to one number a picture: the shape of the loss, masks, and the weight of the level."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from studio.config.training.objective import Objective
from studio.training.objective import STEPS, Noised

LEAST = 1e-6  # a mask that counts for less in all is empty


@dataclass(frozen=True)
class Loss:
    """mse, or pseudo-Huber with a border that follows the noise level. Source: arXiv 2403.16728."""

    kind: Literal["mse", "huber"] = "mse"
    border: float = 0.1
    schedule: Literal["constant", "exponential", "snr"] = "constant"

    def __call__(self, predicted: Tensor, noised: Noised, mask: Tensor | None = None) -> Tensor:
        """(B,), fp32. mask: (B, 1, h, w) in [0, 1], what each place counts; the mean is over what counts."""
        error = predicted.float() - noised.target
        found = error.square() if self.kind == "mse" else self.pseudo_huber(error, noised)
        return mean(found, mask) * noised.weight

    def pseudo_huber(self, error: Tensor, noised: Noised) -> Tensor:
        """2c (sqrt(e^2 + c^2) - c): e^2 for small errors as mse, 2c |e| for large ones; written so that small ones do not cancel out."""
        c = self.borders(noised).view(-1, 1, 1, 1)
        square = error.square()
        return 2 * c * square / (torch.sqrt(square + c.square()) + c)

    def borders(self, noised: Noised) -> Tensor:
        """(B,): c of each picture. Both schedules are 1 without noise; where noise rules, exponential ends in `border` and snr comes down to it."""
        if self.schedule == "exponential":
            return torch.exp(noised.timesteps * (math.log(self.border) / STEPS))
        if self.schedule == "snr":
            spread = noised.snr.clamp(min=1e-12).rsqrt()  # noise over signal
            return (1 - self.border) / (1 + spread).square() + self.border
        return torch.full_like(noised.timesteps, self.border)


def loss_of(chosen: Objective) -> Loss:
    return Loss(chosen.loss, chosen.huber_c, chosen.huber_schedule)


def mean(found: Tensor, mask: Tensor | None) -> Tensor:
    """(B,): the mean over all places, or over those that count: a picture weighs the same however small its mask. 0 where none does."""
    if mask is None:
        return found.flatten(1).mean(1)
    return (found.mean(1, keepdim=True) * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=LEAST)
