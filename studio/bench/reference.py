"""A plain training loop in the manner of the diffusers example scripts, without any of the studio's machinery."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn

from studio.bench.subjects import Subject
from studio.training.objective import Objective
from studio.training.step import Micro


def loop(subject: Subject, objective: Objective, learning_rate: float, max_norm: float) -> Callable[[Micro], float]:
    """One optimizer step as a function of a batch; it gives the loss and so waits for the device, as a progress bar does.

    The base is in its number format, the LoRA in fp32, the forward pass under autocast, the optimizer is torch's AdamW as it comes.
    """
    c = subject.components
    trainable = [p for p in c.denoiser.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=0.01)
    half = c.dtype != torch.float32

    def step(micro: Micro) -> float:
        batch = micro.batch
        noised = objective.noised(batch.latents, micro.noise, micro.level)
        with torch.autocast(c.device.type, c.dtype) if half else nullcontext():
            predicted = subject.family.predict(c, noised.noisy, noised.timesteps, batch.conditioning, batch.sizes)
        loss = nn.functional.mse_loss(predicted.float(), noised.target.float())
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, max_norm)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step
