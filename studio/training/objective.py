"""What the denoiser learns to predict: noise level, noisy latents, target and weight. Pure maths.

`level` is a uniform draw in [0, 1) per picture; each objective turns it into its own distribution of noise.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from studio.config.training.objective import Objective as Chosen
from studio.config.training.objective import check_objective
from studio.errors import BaseError

STEPS = 1000  # timesteps of every family are floats in [0, STEPS)
MOST_SNR = 1000.0  # where nothing but the picture is left, no weight grows further


@dataclass(frozen=True)
class Noised:
    """noisy, target: (B, C, h, w). timesteps, weight, snr (signal-to-noise ratio of the level): (B,), fp32."""

    noisy: Tensor
    timesteps: Tensor
    target: Tensor
    weight: Tensor
    snr: Tensor


class Objective(Protocol):
    def noised(self, latents: Tensor, noise: Tensor, level: Tensor, extra: Tensor | None = None) -> Noised:
        """extra: noise on top of `noise` that the target does not tell of."""
        ...

    def facts(self, latents_shape: tuple[int, ...]) -> dict[str, Any]:
        """What to record with the run, for latents of one picture (C, h, w)."""
        ...


@dataclass(frozen=True)
class Diffusion:
    """Noise or velocity prediction over discrete steps; uniform in the step.

    alphas_cumprod: (T,), the share of signal power left at each step. gamma: min-SNR, None is off.
    """

    kind: Literal["epsilon", "v"]
    alphas_cumprod: Tensor
    gamma: float | None = None
    debiased: bool = False

    def noised(self, latents: Tensor, noise: Tensor, level: Tensor, extra: Tensor | None = None) -> Noised:
        n = len(self.alphas_cumprod)
        steps = (level * n).long().clamp(max=n - 1)
        kept = self.alphas_cumprod.to(latents.device)[steps]
        signal, spread = (x.sqrt().view(-1, 1, 1, 1) for x in (kept, 1 - kept))
        target = noise if self.kind == "epsilon" else signal * noise - spread * latents
        snr = kept / (1 - kept)
        noisy = signal * latents + spread * (noise if extra is None else noise + extra)
        return Noised(noisy, steps.float() * (STEPS / n), target, self.weight(snr), snr)

    def weight(self, snr: Tensor) -> Tensor:
        """Loss weight at a signal-to-noise ratio.

        Min-SNR caps the loss of the clean picture at gamma: min(snr, gamma) there is min(snr, gamma) / snr on the noise
        and min(snr, gamma) / (snr + 1) on the velocity. Source: arXiv 2303.09556, section 3.4 and appendix.
        Debiased weighs the loss of the clean picture by sqrt(snr): 1 / sqrt(snr) on the noise, sqrt(snr) / (snr + 1) on the velocity.
        Source: arXiv 2310.08442, equation 11.
        """
        if self.debiased:
            snr = snr.clamp(max=MOST_SNR)
            return snr.rsqrt() if self.kind == "epsilon" else snr.sqrt() / (snr + 1)
        if self.gamma is None:
            return torch.ones_like(snr)
        if self.kind == "epsilon":
            return (self.gamma / snr).clamp(max=1.0)
        return snr.clamp(max=self.gamma) / (snr + 1)

    def facts(self, latents_shape: tuple[int, ...]) -> dict[str, Any]:
        return {"objective": self.kind, "min_snr_gamma": self.gamma, "debiased": self.debiased}


def logit_normal(level: Tensor, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    """Sigmas whose logit is normal, from uniform levels in [0, 1)."""
    return (torch.special.ndtri(level.double().clamp(1e-7, 1 - 1e-7)) * scale + mean).sigmoid()


def mode(level: Tensor, scale: float) -> Tensor:
    """Sigmas with more weight in the middle for a scale above 0, at the ends below; uniform for 0.

    Source: arXiv 2403.03206, section 3.1, mode sampling with heavy tails; the density stays positive for scales in [-1, 2 / (pi - 2)].
    """
    u = level.double()
    return 1 - u - scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)


@dataclass(frozen=True)
class Flow:
    """Rectified flow: sigma drawn by `sample`, then shifted towards noise; the target is noise - latents."""

    shift: Callable[[tuple[int, ...]], float]  # of the latents of one picture (C, h, w)
    sample: Callable[[Tensor], Tensor] = logit_normal  # uniform levels -> sigmas

    def noised(self, latents: Tensor, noise: Tensor, level: Tensor, extra: Tensor | None = None) -> Noised:
        sigma = shifted(self.sample(level), self.shift(tuple(latents.shape[1:]))).to(latents.dtype)
        spread = sigma.view(-1, 1, 1, 1)
        timesteps = (sigma * STEPS).clamp(max=math.nextafter(STEPS, 0))
        noisy = (1 - spread) * latents + spread * (noise if extra is None else noise + extra)
        return Noised(noisy, timesteps, noise - latents, torch.ones_like(sigma), ((1 - sigma) / sigma.clamp(min=1e-7)) ** 2)

    def facts(self, latents_shape: tuple[int, ...]) -> dict[str, Any]:
        return {"objective": "flow", "flow_shift": round(self.shift(latents_shape), 4)}


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """Move noise levels in (0, 1) towards noise for shift > 1; 1 leaves them.

    Source: black-forest-labs/flux, sampling.py, time_shift with shift = exp(mu).
    """
    return shift * sigma / (1 + (shift - 1) * sigma)


def dynamic_shift(tokens: int, scheduler: Mapping[str, Any]) -> float:
    """The shift for an image of so many packed tokens: 1.878 at 1024 (512 px), 3.158 at 4096 (1024 px) for FLUX.1.

    mu is linear in the tokens between the two points that the scheduler's config names.
    Source: black-forest-labs/flux, sampling.py, get_schedule.
    """
    low, high = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    start, end = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    mu = start + (end - start) * (tokens - low) / (high - low)
    return mu if scheduler.get("time_shift_type", "exponential") == "linear" else math.exp(mu)


def packed_tokens(latents_shape: tuple[int, ...], denoiser: Mapping[str, Any]) -> int:
    """Tokens that a transformer sees for latents (C, h, w): 4096 at 1024 px for Flux, whose tokens are 2x2 latents."""
    patch = denoiser.get("patch_size") or 1
    return math.prod(latents_shape) // (denoiser["in_channels"] * patch * patch)


def alphas_cumprod(scheduler: Mapping[str, Any]) -> Tensor:
    """(T,) in fp32 from the betas of a scheduler's config, rescaled to zero terminal signal if it says so."""
    n, start, end = scheduler.get("num_train_timesteps", STEPS), scheduler.get("beta_start", 0.0001), scheduler.get("beta_end", 0.02)
    kind = scheduler.get("beta_schedule", "linear")
    if scheduler.get("trained_betas") is not None:
        betas = torch.tensor(scheduler["trained_betas"], dtype=torch.float32)
    elif kind == "linear":
        betas = torch.linspace(start, end, n, dtype=torch.float32)
    elif kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, n, dtype=torch.float32) ** 2
    else:
        raise BaseError(f"the base's scheduler has the noise schedule {kind!r}; linear and scaled_linear can be trained")
    kept = torch.cumprod(1 - betas, dim=0)
    return _zero_terminal(kept) if scheduler.get("rescale_betas_zero_snr") else kept


def _zero_terminal(kept: Tensor) -> Tensor:
    """Shift and scale sqrt(kept) so that nothing of the signal is left at the last step (arXiv 2305.08891, algorithm 1)."""
    root = kept.sqrt()
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2


def choose(kind: Literal["epsilon", "v", "flow"], scheduler: Mapping[str, Any], denoiser: Mapping[str, Any], chosen: Chosen) -> Objective:
    """The objective of a base, from its scheduler's and denoiser's configs. Raises SettingsError on a setting of another kind."""
    check_objective(kind, chosen)
    if kind != "flow":
        config = {**scheduler, "rescale_betas_zero_snr": True} if chosen.zero_terminal_snr else scheduler
        return Diffusion(kind, alphas_cumprod(config), chosen.min_snr_gamma, chosen.debiased)
    sample = _sampling(chosen)
    if chosen.flow_shift is not None:
        shift = chosen.flow_shift
        return Flow(lambda shape: shift, sample)
    if scheduler.get("use_dynamic_shifting"):
        return Flow(lambda shape: dynamic_shift(packed_tokens(shape, denoiser), scheduler), sample)
    return Flow(lambda shape: float(scheduler.get("shift") or 1.0), sample)


def _sampling(chosen: Chosen) -> Callable[[Tensor], Tensor]:
    if chosen.timestep_sampling == "uniform":
        return lambda level: level.double()
    if chosen.timestep_sampling == "mode":
        return lambda level: mode(level, chosen.mode_scale)
    return lambda level: logit_normal(level, chosen.timestep_mean, chosen.timestep_scale)
