"""How one optimizer step runs: micro-batches summed up, clipped, applied.

The frozen base runs in its own number format. The LoRA's fp32 weights are the ones that are trained and saved; on a half-precision
base the layers hold a rounded copy of them, so that no product runs in fp32 and nothing is cast inside the network.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from studio.config import TrainConfig
from studio.data.cache import Batch
from studio.errors import RunError
from studio.families.base import Conditioning, Family
from studio.lora.attach import Attached
from studio.lora.bare import bare
from studio.lora.fused import Fused
from studio.training import optim
from studio.training.losses import loss_of, mean
from studio.training.objective import Noised, Objective
from studio.training.preference import preference_loss

GROWTH_STEPS = 1000  # good steps before an fp16 loss scale is doubled
FIRST_SCALE = 2.0**14


@dataclass(frozen=True)
class Micro:
    """One micro-batch with its draws. noise, extra: like the latents; level, weight: (B,); keys: (B,) int64, what dropout follows from;
    prior: (B,), who is to be predicted as the base alone does; captions: what text encoders in training read."""

    batch: Batch
    noise: Tensor
    level: Tensor
    keys: Tensor | None = None
    extra: Tensor | None = None
    weight: Tensor | None = None
    prior: Tensor | None = None
    rival: Tensor | None = None  # latents of the worse pictures
    captions: tuple[str, ...] = ()
    outside: Tensor | None = None  # (B, 1, h, w), the black of masks, where what the base alone predicts is the target too


@dataclass(frozen=True)
class Outcome:
    loss: float
    gradient_norm: float
    applied: bool  # False if loss or gradient was not finite and the weights were left alone


class Weights:
    """The trainable parameters: exact fp32 ones, and the live ones in the layers (the same tensors on an fp32 base)."""

    def __init__(self, trainable: Mapping[str, nn.Parameter], rates: Mapping[str, float], dtype: torch.dtype, fused: Fused | None = None):
        # Parameters of one rate stand together, as the optimizer's groups do.
        self.names = sorted(trainable, key=lambda name: -rates[name])
        self.shares = [rates[name] for name in self.names]
        self.live: list[Tensor] = [trainable[name] for name in self.names]
        self.exact: list[Tensor] = self.live
        self.fused = fused  # then the layers run with rounded copies in its banks, and these are the exact weights
        if dtype != torch.float32 and fused is None:
            self.exact = [p.detach().clone().requires_grad_() for p in self.live]
            for p in self.live:
                p.data = p.data.to(dtype)

    @property
    def mixed(self) -> bool:
        return self.exact is not self.live

    @torch.no_grad()
    def gather(self) -> None:
        """Add the layers' gradients to the exact weights' and clear them."""
        if self.fused:
            self.fused.gather()
        if not self.mixed:
            return
        for exact, live in zip(self.exact, self.live, strict=True):
            if live.grad is not None:
                exact.grad = live.grad.float() if exact.grad is None else exact.grad.add_(live.grad)
                live.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Bring the layers up to date with the exact weights."""
        if self.mixed:
            torch._foreach_copy_(self.live, self.exact)
        self.show()

    def show(self) -> None:
        """Let the layers run with what `live` holds."""
        if self.fused:
            self.fused.publish()

    @contextmanager
    def exposed(self) -> Iterator[None]:
        """Within, the layers hold the exact weights: for reading them off, not for running."""
        rounded = [p.data for p in self.live]
        for exact, live in zip(self.exact, self.live, strict=True):
            live.data = exact.data
        try:
            yield
        finally:
            for data, live in zip(rounded, self.live, strict=True):
                live.data = data

    def named(self) -> dict[str, Tensor]:
        """The exact weights by name."""
        return dict(zip(self.names, self.exact, strict=True))

    def gradients(self) -> list[Tensor]:
        if self.fused:
            return self.fused.gradients()
        return [p.grad for p in self.exact if p.grad is not None]

    def clear(self) -> None:
        if self.fused:
            self.fused.clear()
            return
        for p in (*self.exact, *self.live):
            p.grad = None


class Stepper:
    """Runs optimizer steps on attached components. `loss_scale` moves in fp16 only."""

    def __init__(self, attached: Attached, family: Family, objective: Objective, config: TrainConfig, fused: Fused | None = None):
        self.attached, self.components, self.family, self.objective = attached, attached.components, family, objective
        self.loss = loss_of(config)
        self.beta = config.preference_beta or 0.0
        self.outside = config.masked_prior_weight
        self.max_norm = config.max_gradient_norm
        self.weights = Weights(attached.trainable(), attached.rates(), attached.components.dtype, fused)
        self.optimizer = optim.optimizer(optim.groups(self.weights.exact, self.weights.shares), config)
        self.scaled = self.components.dtype == torch.float16
        self.loss_scale = FIRST_SCALE if self.scaled else 1.0
        self.scaled_steps = 0

    def accumulate(self, micros: Iterable[Micro], pictures: int) -> Tensor:
        """Forward and backward of all micro-batches; the mean loss over their `pictures`, on the device."""
        total: Tensor | None = None
        for micro in micros:
            loss = self._losses(micro).sum() / pictures
            (loss * self.loss_scale).backward()
            self.weights.gather()
            total = loss.detach() if total is None else total + loss.detach()
        return torch.zeros((), device=self.components.device) if total is None else total  # one of several processes may have no share

    @torch.no_grad()
    def measure(self, micro: Micro) -> Tensor:
        """(B,) the losses that `accumulate` would learn from."""
        return self._losses(micro)

    def _losses(self, micro: Micro) -> Tensor:
        """(B,) weighted errors, in fp32."""
        self.attached.chance.keys = micro.keys
        if micro.rival is not None:
            return self._preferences(micro, micro.rival)
        noised = self.objective.noised(micro.batch.latents, micro.noise, micro.level, micro.extra)
        own: Tensor | None = None
        if micro.prior is not None or micro.outside is not None:
            with bare(self.components.denoiser):
                own = self._predict(micro.batch, noised, micro.batch.conditioning).float()
        if own is not None and micro.prior is not None:
            noised = replace(noised, target=torch.where(micro.prior.view(-1, 1, 1, 1), own, noised.target))
        predicted = self._predict(micro.batch, noised, self._conditioning(micro))
        found = self.loss(predicted, noised, micro.batch.masks)
        if own is not None and micro.outside is not None:
            found = found + self.outside * self.loss(predicted, replace(noised, target=own), micro.outside)
        return found if micro.weight is None else found * micro.weight

    def _preferences(self, micro: Micro, rival: Tensor) -> Tensor:
        """(B,) losses of pairs: both pictures in one pass, under the same noise, level and caption."""
        batch = micro.batch
        twice = {name: torch.cat([tensor, tensor]) for name, tensor in batch.conditioning.items()}
        now = {name: torch.cat([tensor, tensor]) for name, tensor in self._conditioning(micro).items()}
        both = replace(batch, latents=torch.cat([batch.latents, rival]), conditioning=twice, sizes=torch.cat([batch.sizes, batch.sizes]))
        if micro.keys is not None:
            self.attached.chance.keys = torch.cat([micro.keys, micro.keys])
        noised = self.objective.noised(both.latents, torch.cat([micro.noise, micro.noise]), torch.cat([micro.level, micro.level]))
        with bare(self.components.denoiser):
            base = self._errors(both, noised, twice)
        better, worse = self._errors(both, noised, now).chunk(2)
        base_better, base_worse = base.chunk(2)
        found = preference_loss(better, worse, base_better, base_worse, self.beta)
        return found if micro.weight is None else found * micro.weight

    def _errors(self, batch: Batch, noised: Noised, conditioning: Conditioning) -> Tensor:
        return mean((self._predict(batch, noised, conditioning).float() - noised.target).square(), None)

    def _predict(self, batch: Batch, noised: Noised, conditioning: Conditioning) -> Tensor:
        return self.family.predict(self.components, noised.noisy, noised.timesteps, conditioning, batch.sizes)

    def _conditioning(self, micro: Micro) -> Conditioning:
        """What was cached, and from encoders that are trained or read trained words what they give now."""
        if not self.attached.reads_live:
            return micro.batch.conditioning
        return micro.batch.conditioning | self.family.encode_captions(self.components, micro.captions)

    def update(self, loss: Tensor, learning_rate: float) -> Outcome:
        """Clip and apply what was accumulated, unless it is not finite. Waits for the device once."""
        gradients = self.weights.gradients()
        if self.loss_scale != 1.0:
            torch._foreach_div_(gradients, self.loss_scale)
        allocator = self.attached.allocator
        norm = nn.utils.get_total_norm(gradients)
        if self.max_norm > 0:
            nn.utils.clip_grads_with_norm_(self.weights.exact, self.max_norm, norm)
        loss_value, norm_value = cast(list[float], torch.stack([loss, norm]).tolist())
        applied = math.isfinite(loss_value) and math.isfinite(norm_value)
        if applied:
            optim.set_rate(self.optimizer, learning_rate)
            self.optimizer.step()
            if allocator:
                allocator.moved(self.weights.named())
            self.weights.publish()
        self.weights.clear()
        self._rescale(applied)
        return Outcome(loss_value, norm_value, applied)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within, the layers hold what would be saved now, rounded as they run; afterwards training goes on bit for bit."""
        if not optim.averages(self.optimizer):
            yield
            return
        try:
            with optim.given(self.optimizer):
                self.weights.publish()
                yield
        finally:
            self.weights.publish()

    def _rescale(self, applied: bool) -> None:
        if not self.scaled:
            return
        self.scaled_steps = self.scaled_steps + 1 if applied else 0
        if not applied:
            self.loss_scale = max(1.0, self.loss_scale / 2)
        elif self.scaled_steps == GROWTH_STEPS:
            self.loss_scale, self.scaled_steps = min(self.loss_scale * 2, 2.0**20), 0

    def check_gradients(self) -> int:
        """How many layers the first backward pass gave no more than zeros. Raises RunError if it missed one, or moved none at all."""
        layers: dict[str, list[Tensor | None]] = {}
        for name, parameter, live in zip(self.weights.names, self.weights.exact, self.weights.live, strict=True):
            if not live.requires_grad:
                continue  # a text encoder or a word that has learned enough
            if self.attached.words and parameter.grad is None and name in self.attached.words.names:
                continue  # no caption of this step says it
            layers.setdefault(self.attached.layer_of[name], []).append(parameter.grad)
        if not layers and self.attached.words:
            return 0  # words alone, of which this step said none
        missed = [path for path, grads in layers.items() if all(grad is None for grad in grads)]
        if missed:
            raise RunError(f"{len(missed)} of {len(layers)} layers got no gradient, first {missed[0]}; choose other targets for this base")
        # Only the factor that starts at zero moves at first, so a layer counts by the largest of its gradients.
        moved = [max(float(grad.abs().max()) for grad in grads if grad is not None) > 0 for grads in layers.values()]
        if not any(moved):
            raise RunError("the first step moved no layer: every gradient is zero; choose precision bf16 or fp32")
        return moved.count(False)
