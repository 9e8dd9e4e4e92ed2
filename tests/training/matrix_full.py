"""The yardstick of what a LoRA leaves on the table: all weights of the denoiser trained, by the same pictures, draws and looks."""

from pathlib import Path

import torch

from studio import families
from studio.config import TrainConfig
from studio.data.cache import Cache
from studio.data.images import ImageSet
from studio.evaluation.checkpoints import opened
from studio.families.base import Base
from studio.families.devices import resolve_dtype
from studio.training import optim
from studio.training.drawing import drawn
from studio.training.plan import plan
from studio.training.run import Run
from studio.training.validation import evaluating, measure


def full(config: TrainConfig, base: Base, images: ImageSet, folder: Path, cache: Path, device: str) -> list[dict[str, float]]:
    """Held-out losses by picture, before and after. The run's adapter stays as it begins, without effect."""
    family, where = families.get(base.family), torch.device(device)
    made = plan(config, base, family.facts, images, None)
    store = Cache(cache, base, family, resolve_dtype(made.config.precision, where), where)
    list(store.fill(made.everything()))
    run = opened(made, store, folder)
    run.begin(None)
    try:
        adapter = set(map(id, run.attached.trainable().values()))
        weights = [p for p in run.components.denoiser.parameters() if id(p) not in adapter]
        for p in run.components.denoiser.parameters():
            p.requires_grad_(id(p) not in adapter)
        optimizer = torch.optim.AdamW(weights, lr=made.config.learning_rate or 0.0, weight_decay=made.config.weight_decay)
        looks = [_look(run)]
        for number in range(made.steps):
            chosen = made.batch(number)
            micro = drawn(store, [draw for _, draw in chosen], [want for want, _ in chosen], made.config)
            run.stepper.accumulate([micro], len(chosen))
            torch.nn.utils.clip_grad_norm_(weights, made.config.max_gradient_norm)
            for group in optimizer.param_groups:
                group["lr"] = optim.learning_rate(number + 1, made.steps, made.config)
            optimizer.step()
            optimizer.zero_grad()
        return [*looks, _look(run)]
    finally:
        run.close()


def _look(run: Run) -> dict[str, float]:
    with evaluating(run.components):
        return measure(run.plan.held, run.plan.config.seed, 4, run.losses).by_picture()
