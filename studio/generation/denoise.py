"""The denoising loop: from noise, or from a picture made noisy, to clean latents. One loop for every family and every mode."""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from studio import families
from studio.families.base import Components, Conditioning
from studio.generation import running
from studio.generation.schedulers import Schedule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

R = TypeVar("R")
LOOK_SECONDS = 0.1  # between two looks for a cancel inside one step


@dataclass(frozen=True)
class Guide:
    """What pulls the noise towards a picture.

    wanted, unwanted: conditioning, batch first; unwanted None where nothing is drawn away from. scale mixes the two predictions,
    rescale (0 to 1) brings the mix back to the contrast of the first. told: what a base with distilled guidance is told.
    """

    wanted: Conditioning
    unwanted: Conditioning | None = None
    scale: float = 1.0
    rescale: float = 0.0
    told: float | None = None


@dataclass(frozen=True)
class Kept:
    """What stays of a picture: its latents (B, C, h, w), and where (B or 1, 1, h, w) in [0, 1]; 1 is drawn anew."""

    known: "Tensor"
    mask: "Tensor"


@dataclass(frozen=True)
class Done:
    """Steps done so far, and a call that gives the clean latents (B, C, h, w) they point to. The call may be left out."""

    steps: int
    estimate: "Callable[[], Tensor]"


def denoise(
    c: Components,
    guide: Guide,
    schedule: Schedule,
    noise: "Tensor",
    *,
    generators: "Sequence[torch.Generator]",
    start: "Tensor | None" = None,
    kept: Kept | None = None,
    before: Callable[[float], None] = lambda _: None,
) -> "Generator[Done, None, Tensor]":
    """Clean latents (B, C, h, w) as the iterator's result (`yield from`); yields after every look of the denoiser.

    noise: (B, C, h, w) in fp32 on the base's device. start: latents that a shortened schedule begins from. before: called
    before every look with its place in the whole schedule, from 0 to 1. Latents stay in fp32 between steps.
    """
    import torch

    running.begin(c)
    latents = schedule.begin(noise, start)
    height, width = (side * pixels_per_latent(c) for side in noise.shape[-2:])
    sizes = torch.tensor([[height, width, 0, 0, height, width]], device=c.device).expand(len(latents), -1)
    for index in range(len(schedule)):
        before(schedule.place(index))
        timestep = schedule.timesteps[index]
        scale = getattr(schedule.sampler, "scale_model_input", None)
        given = scale(latents, timestep) if scale else latents
        prediction = _predict(c, guide, given, timestep, sizes)
        latents = schedule.step(prediction, index, latents, generators)
        if kept is not None:
            latents = kept.mask * latents + (1 - kept.mask) * schedule.noised(kept.known, noise, index + 1)

        def estimate(given: "Tensor" = given, prediction: "Tensor" = prediction, timestep: "Tensor" = timestep) -> "Tensor":
            return clean(c, given, prediction, timestep)

        yield Done(index + 1, estimate)
    return latents


def pixels_per_latent(c: Components) -> int:
    """Pixels along a side of what one latent stands for."""
    return 2 ** (len(c.parts["vae"].config.block_out_channels) - 1)


def clean(c: Components, noisy: "Tensor", prediction: "Tensor", timestep: "Tensor") -> "Tensor":
    """The latents without noise that a prediction points to, whatever sampler is at work: what the denoiser sees has the base's own noise levels."""
    if c.objective == "flow":
        return noisy - timestep / 1000 * prediction
    kept = c.parts["scheduler"].alphas_cumprod.to(noisy.device)
    level = kept[timestep.round().long().clamp(0, len(kept) - 1)].clamp(min=1e-4)
    if c.objective == "v":
        return level.sqrt() * noisy - (1 - level).sqrt() * prediction
    return (noisy - (1 - level).sqrt() * prediction) / level.sqrt()


@contextlib.contextmanager
def interruptible(c: Components, check: Callable[[], None]) -> Iterator[None]:
    """Call `check` between the blocks of denoiser and VAE too, now and then; what it raises ends the step at hand."""
    last = time.monotonic()

    def look(*_: object) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LOOK_SECONDS:
            last = now
            check()

    hooks = [block.register_forward_pre_hook(look) for block in _blocks(c)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def reporting(c: Components, begin: "Callable[[], Generator[Done, None, R]]", check: Callable[[], None] | None) -> "Callable[[Callable[[Done], None]], R]":
    """A call that runs what `begin` gives to its end and reports every step it has done. `check`, if any, is called within steps too, and may raise."""

    def draw(report: Callable[[Done], None]) -> "R":
        import torch

        with torch.no_grad(), interruptible(c, check) if check else contextlib.nullcontext():
            steps = begin()
            while True:
                try:
                    report(next(steps))
                except StopIteration as ended:
                    return ended.value

    return draw


def _blocks(c: Components) -> "Iterator[Any]":
    """The large parts that denoiser and VAE run one after the other."""
    import torch

    vae = c.parts["vae"]
    for model in (c.denoiser, vae.encoder, vae.decoder):
        for child in model.children():
            if isinstance(child, torch.nn.ModuleList):
                yield from child


def _predict(c: Components, guide: Guide, noisy: "Tensor", timestep: "Tensor", sizes: "Tensor") -> "Tensor":
    """The mixed prediction in fp32; both sides in one batch."""
    import torch

    family = families.get(c.facts.name)
    if guide.unwanted is None:
        return family.predict(c, noisy, timestep.expand(len(noisy)), guide.wanted, sizes, guide.told).float()
    both = {key: torch.cat([guide.unwanted[key], value]) for key, value in guide.wanted.items()}
    predicted = family.predict(c, torch.cat([noisy, noisy]), timestep.expand(2 * len(noisy)), both, torch.cat([sizes, sizes]), guide.told).float()
    away, towards = predicted.chunk(2)
    mixed = away + guide.scale * (towards - away)
    return mixed if not guide.rescale else _rescaled(mixed, towards, guide.rescale)


def _rescaled(mixed: "Tensor", towards: "Tensor", share: float) -> "Tensor":
    """The mix with `share` of its excess contrast taken back.

    Source: Lin et al. 2023, Common Diffusion Noise Schedules and Sample Steps are Flawed (arXiv 2305.08891), section 3.4.
    """
    axes = tuple(range(1, mixed.ndim))
    wanted, found = (value.std(dim=axes, keepdim=True) for value in (towards, mixed))
    return share * mixed * (wanted / found) + (1 - share) * mixed
