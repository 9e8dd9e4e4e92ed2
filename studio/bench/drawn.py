"""What drawing is measured on: a base with its VAE, spoken prompts, random adapters; and the looks, loops and pictures of it."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studio import config as settings
from studio import families
from studio.bench import subjects
from studio.config import GenerateConfig
from studio.events import Event
from studio.families import sources
from studio.families.base import Components, Conditioning
from studio.families.parts import read_json
from studio.generation import conditioning, sampler, schedulers, serving
from studio.generation.denoise import Guide, denoise, pixels_per_latent
from studio.generation.orders import Order
from studio.generation.running import Speed
from studio.generation.stack import Rows
from studio.lora.adapter import Adapter, LowRank
from studio.lora.attach import module_map

PROMPT = "a lighthouse at dusk"


class NoRequests:
    """Nobody asks anything of this job."""

    def pending(self) -> set[str]:
        return set()


@dataclass
class Drawn:
    """A loaded base and what it is given at a resolution."""

    c: Components
    resolution: int

    @property
    def guidance(self) -> float:
        return 5.0 if self.c.facts.negative_prompts else 3.5

    @cached_property
    def conditioning(self) -> Conditioning:
        """One prompt; random numbers of the right shape where the base has no text encoders here."""
        if self.c.parts["text_encoder"] is not None:
            return families.get(self.c.facts.name).encode_captions(self.c, [PROMPT])
        shapes = subjects.conditioning_shapes(self.c)
        found = {name: torch.randn(1, *shape).to(self.c.device, self.c.dtype) for name, shape in shapes.items()}
        for words in (PROMPT, ""):
            conditioning.keep(self.c, words, "", found)
        return found

    def guide(self, images: int = 1) -> Guide:
        wanted = {key: value.repeat(images, *[1] * (value.dim() - 1)) for key, value in self.conditioning.items()}
        if not self.c.facts.negative_prompts:
            return Guide(wanted, told=self.guidance)
        return Guide(wanted, {key: torch.zeros_like(value) for key, value in wanted.items()}, self.guidance)

    def noise(self, images: int = 1) -> Tensor:
        vae: Any = self.c.parts["vae"]
        side = self.resolution // pixels_per_latent(self.c)
        return torch.randn(images, vae.config.latent_channels, side, side, generator=torch.Generator().manual_seed(1)).to(self.c.device)

    def look(self, images: int = 1) -> Callable[[], Tensor]:
        """A call of the denoiser as a step makes it: both halves of a guided pair at once."""
        guide, family = self.guide(images), families.get(self.c.facts.name)
        batch = 2 * images if guide.unwanted else images
        noisy = self.noise(batch)
        words = {key: torch.cat([guide.unwanted[key], value]) for key, value in guide.wanted.items()} if guide.unwanted else guide.wanted
        sizes = torch.tensor([[self.resolution, self.resolution, 0, 0, self.resolution, self.resolution]] * batch, device=self.c.device)
        timesteps = torch.full((batch,), 500.0, device=self.c.device)

        def look() -> Tensor:
            with torch.no_grad():
                return family.predict(self.c, noisy, timesteps, words, sizes, guide.told)

        return look

    def loop(self, steps: int) -> Tensor:
        """A whole denoising by the studio's own loop."""
        size = (self.resolution, self.resolution)
        with torch.no_grad():
            going = denoise(self.c, self.guide(), schedulers.schedule(self.c, None, steps, size), self.noise(), generators=[torch.Generator()])
            while True:
                try:
                    next(going)
                except StopIteration as ended:
                    return ended.value

    def picture(self, stack: Rows, speed: Speed, steps: int, folder: Path) -> float:
        """Seconds from the job's start to its written picture."""
        order = self._order(stack, speed, steps, folder)
        began = time.perf_counter()
        _drain(sampler.generate(self.c, stack, order.config, folder, requests=order.requests, names=order.names))
        return time.perf_counter() - began

    def pictures(self, stacks: Sequence[Rows], speed: Speed, steps: int, folder: Path) -> float:
        """The same for pictures of several stacks in one pass. Raises what ended any of them."""
        orders = [self._order(stack, speed, steps, folder / f"{i}") for i, stack in enumerate(stacks)]
        began = time.perf_counter()
        for _, said in serving.serve(self.c, orders):
            if isinstance(said, Exception):
                raise said
        return time.perf_counter() - began

    def _order(self, stack: Rows, speed: Speed, steps: int, folder: Path) -> Order:
        assert self.conditioning
        values = {"base": self.c.base.name, "prompt": PROMPT, "seed": 1, "steps": steps, "guidance": self.guidance, "speed": speed, "live_preview": 0}
        config = settings.build(GenerateConfig, {**values, "width": self.resolution, "height": self.resolution, "batch": 64})
        return Order(config, stack, folder, NoRequests(), [f"lora-{i}" for i in range(len(stack))])


def load(family: str, weights: str, resolution: int, dtype: torch.dtype, device: torch.device) -> Drawn:
    """A base with all parts, or denoiser and VAE of full size with random weights, made on the device."""
    kind = families.get(family)
    if weights != "random":
        base = sources.find(kind.facts.default_base if weights == "demo" else weights)
        return Drawn(kind.load(base, ["denoiser", "vae", "text"], dtype, device), resolution)
    import diffusers

    drawn = subjects.load(family, "random", dtype, device)
    silent = {name: None for encoder in kind.facts.text_encoders for name in (encoder, encoder.replace("text_encoder", "tokenizer"))}
    with torch.device("meta"):
        vae: Any = diffusers.AutoencoderKL.from_config(read_json(drawn.configs / "vae" / "config.json"))
    drawn.components.parts |= {**silent, "vae": subjects.filled(vae, torch.float32, device)}
    return Drawn(drawn.components, resolution)


def adapters(c: Components, n: int, rank: int, seed: int = 0) -> list[Adapter]:
    """LoRAs of random numbers on the attention of the denoiser, others for every seed."""
    import re

    wanted = re.compile("|".join(f"(?:{pattern})" for pattern in c.facts.lora_targets["attention"]))
    prefix = f"{c.facts.denoiser}."
    shapes = {path: tuple(module.weight.shape) for path, module in module_map(c).items() if path.startswith(prefix)}  # type: ignore[union-attr, arg-type]
    chosen = {path: shape for path, shape in shapes.items() if wanted.fullmatch(path.removeprefix(prefix))}
    return [
        Adapter(c.facts.name, {path: _layer(shape, rank, number) for number, (path, shape) in enumerate(chosen.items(), 1000 * (i + 100 * seed))})
        for i in range(n)
    ]


def _layer(shape: tuple[int, ...], rank: int, seed: int) -> LowRank:
    draw = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, shape[1], generator=draw) / shape[1] ** 0.5
    return LowRank(down, torch.randn(shape[0], rank, generator=draw) * 0.02, float(rank))


def _drain(events: Iterator[Event]) -> None:
    for _ in events:
        pass
