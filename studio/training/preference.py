"""Learning from pairs: the better picture must gain over the base more than the worse one. Pure maths."""

import torch
from torch import Tensor


def preference_loss(better: Tensor, worse: Tensor, base_better: Tensor, base_worse: Tensor, beta: float) -> Tensor:
    """(B,): -log sigmoid(-beta / 2 * ((better - worse) - (base_better - base_worse))), log 2 where nothing was learned yet.

    Each argument is the mean squared error of a prediction (B,), with the same noise at the same level for both pictures of a pair;
    base_*: those of the base alone. Source: Diffusion-DPO, arXiv 2311.12908, equation 14; beta there times the number of steps is beta here.
    """
    gained = (better - worse) - (base_better - base_worse)
    return -torch.nn.functional.logsigmoid(-0.5 * beta * gained)
