"""The noise of one picture: plain, with whole channels shifted, with coarse layers, with a part that the target does not tell of."""

import torch
from torch import Tensor

from studio.config.training.objective import Objective
from studio.training.draws import Draw


def target_noise(draw: Draw, shape: tuple[int, ...], chosen: Objective) -> Tensor:
    """(C, h, w), fp32, on the CPU: what the model is to find."""
    noise = draw.noise(shape)
    if chosen.noise_offset:
        noise = noise + chosen.noise_offset * torch.randn(shape[0], 1, 1, generator=draw.another("offset"))
    if chosen.pyramid_noise:
        noise = pyramid(noise, chosen.pyramid_noise, chosen.pyramid_discount, draw.another("pyramid"))
    return noise


def extra_noise(draw: Draw, shape: tuple[int, ...], chosen: Objective) -> Tensor | None:
    """(C, h, w): what lies on top of the noise unseen, so that a prediction must stand small errors of the one before. Source: arXiv 2301.11706."""
    if not chosen.input_perturbation:
        return None
    return chosen.input_perturbation * torch.randn(shape, generator=draw.another("perturbation"))


def pyramid(noise: Tensor, layers: int, discount: float, generator: torch.Generator) -> Tensor:
    """Noise plus ever coarser noise, each layer `discount` times the one before, scaled back to the spread of one.

    Layers shrink by a factor drawn from [2, 4) and end with a single value a channel. Source: Whitaker, "Multi-Resolution Noise for
    Diffusion Model Training", wandb.ai/johnowhitaker.
    """
    channels, height, width = noise.shape
    total = noise.clone()
    for layer in range(1, layers + 1):
        shrunk = (2 + 2 * torch.rand((), generator=generator).item()) ** layer
        size = max(1, int(height / shrunk)), max(1, int(width / shrunk))
        coarse = torch.randn(1, channels, *size, generator=generator)
        total += torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0] * discount**layer
        if size == (1, 1):
            break
    return total / total.std()
