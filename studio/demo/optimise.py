"""How the demo bases are optimised: fp32 master weights under a bf16 model, AdamW, an average of the weights, a time budget."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Say = Callable[[str], None]

WARM_UP = 0.02  # share of the run
PLATEAU = 0.35  # share of the run at the peak rate; a cosine down to 1 % follows


@dataclass(frozen=True)
class Budget:
    """When a stage ends: after so many seconds, or steps if they come first."""

    seconds: float
    steps: int | None = None


def rate_at(share: float, peak: float) -> float:
    """Learning rate after that share of the run."""
    warm = min(1.0, share / WARM_UP + 0.005)
    if share < PLATEAU:
        return peak * warm
    fall = min(1.0, (share - PLATEAU) / (1 - PLATEAU))
    return peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall)))


class Optimiser:
    """Trains modules on a loss; afterwards `finish` leaves the averaged weights in them, in fp32."""

    def __init__(self, modules: Sequence[nn.Module], peak: float, weight_decay: float, average: float, dtype: torch.dtype) -> None:
        self.modules = modules
        self.parameters: list[Tensor] = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.masters = [p.detach().float().clone() for p in self.parameters]
        self.averages = [master.clone() for master in self.masters]
        self.peak = peak
        self.average = average
        for module in modules:
            module.to(dtype)
        for master in self.masters:
            master.grad = torch.zeros_like(master)
        self.adamw = torch.optim.AdamW(self.masters, lr=peak, weight_decay=weight_decay, betas=(0.9, 0.99), fused=self.masters[0].is_cuda)

    def run(self, loss: Callable[[int], Tensor], budget: Budget, say: Callable[[str], None]) -> int:
        """Step until the budget is spent; `loss(step)` makes a batch and its loss. Returns the steps taken."""
        began = time.monotonic()
        step = 0
        while step < (budget.steps or math.inf):
            share = (time.monotonic() - began) / budget.seconds
            share = max(share, step / budget.steps) if budget.steps else share
            if share >= 1:
                break
            value = self.step(loss(step), rate_at(share, self.peak))
            if step % 500 == 0:
                say(f"step {step}, loss {value.item():.4f}, {time.monotonic() - began:.0f} s")
            step += 1
        return step

    def step(self, loss: Tensor, rate: float) -> Tensor:
        """One update at that learning rate; gives the loss back, detached."""
        loss.backward()
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            # A layer that the loss does not reach, such as the last of CLIP when its second last is used, keeps a gradient of zero.
            if parameter.grad is not None and master.grad is not None:
                master.grad.copy_(parameter.grad)
                parameter.grad.zero_()
        nn.utils.clip_grad_norm_(self.masters, 1.0)
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.masters)
            torch._foreach_lerp_(self.averages, self.masters, 1 - self.average)
        return loss.detach()

    def finish(self) -> None:
        for module in self.modules:
            module.float()
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.averages, strict=True):
                parameter.copy_(average)
                parameter.grad = None
