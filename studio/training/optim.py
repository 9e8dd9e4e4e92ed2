"""Optimizers and learning-rate schedules by name."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from studio.config import TrainConfig


def _adamw(params: Sequence[Tensor], config: TrainConfig) -> torch.optim.Optimizer:
    fused = params[0].device.type in ("cpu", "cuda", "mps")
    return torch.optim.AdamW(params, lr=config.learning_rate or 0.0, weight_decay=config.weight_decay, fused=fused)


OPTIMIZERS: Mapping[str, Callable[[Sequence[Tensor], TrainConfig], torch.optim.Optimizer]] = {"adamw": _adamw}

# share of the learning rate after warm-up, at progress in [0, 1)
SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}


def optimizer(params: Sequence[Tensor], config: TrainConfig) -> torch.optim.Optimizer:
    return OPTIMIZERS[config.optimizer](params, config)


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """The rate of step 1, 2, ... total: linear warm-up from above 0, then the schedule, which ends above 0 at the last step."""
    peak, warmup = config.learning_rate or 0.0, config.warmup_steps
    if step <= warmup:
        return peak * step / warmup
    return peak * SCHEDULES[config.lr_schedule]((step - 1 - warmup) / max(1, total - warmup))


def state_tensors(opt: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """The optimizer's memory under `name/key`; `names` in the order of its parameters. Numbers become 0-d tensors."""
    state = opt.state_dict()["state"]
    return {f"{names[i]}/{key}": torch.as_tensor(value) for i, entry in state.items() for key, value in entry.items()}


def load_state_tensors(opt: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Give back what `state_tensors` took. The learning rate is not part of it: it follows from the step."""
    number = {name: i for i, name in enumerate(names)}
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        state.setdefault(number[name], {})[entry] = tensor
    opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
