"""What drawing is measured on: a base with its VAE, spoken prompts, random adapters; and the looks, loops and pictures of it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from studio import config as settings
from studio import families
from studio.config import GenerateConfig
from studio.events import Event
from studio.families import sources
from studio.families.base import Base, Components, Conditioning
from studio.families.parts import CONFIGS, read_json
from studio.generation import conditioning, sampler, schedulers
from studio.generation.denoise import Guide, denoise
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
        if "text_encoder" in self.c.parts and self.c.parts["text_encoder"] is not None:
            return families.get(self.c.facts.name).encode_captions(self.c, [PROMPT])
        found = {name: torch.randn(1, *shape).to(self.c.device, self.c.dtype) for name, shape in _shapes(self.c).items()}
        self.c.warm.setdefault("prompts", conditioning.kept())[(PROMPT, "")] = found
        return found

    def guide(self, images: int = 1) -> Guide:
        wanted = {key: value.repeat(images, *[1] * (value.dim() - 1)) for key, value in self.conditioning.items()}
        if not self.c.facts.negative_prompts:
            return Guide(wanted, told=self.guidance)
        return Guide(wanted, {key: torch.zeros_like(value) for key, value in wanted.items()}, self.guidance)

    def noise(self, images: int = 1) -> Tensor:
        vae: Any = self.c.parts["vae"]
        side = self.resolution // 2 ** (len(vae.config.block_out_channels) - 1)
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
            going = denoise(self.c, self.guide(), schedulers.schedule(self.c, None, steps, size), self.noise(), size, generators=[torch.Generator()])
            while True:
                try:
                    next(going)
                except StopIteration as ended:
                    return ended.value

    def picture(self, stack: Rows, speed: Speed, steps: int, folder: Path) -> float:
        """Seconds from the job's start to its written picture."""
        assert self.conditioning
        values = {"base": self.c.base.name, "prompt": PROMPT, "seed": 1, "steps": steps, "guidance": self.guidance, "speed": speed, "live_preview": 0}
        config = settings.build(GenerateConfig, {**values, "width": self.resolution, "height": self.resolution})
        began = time.perf_counter()
        _drain(sampler.generate(self.c, stack, config, folder, requests=NoRequests(), names=[f"lora-{i}" for i in range(len(stack))]))
        return time.perf_counter() - began


def load(family: str, weights: str, resolution: int, device: torch.device) -> Drawn:
    """The demo base with all parts, or denoiser and VAE of full size with random weights, made on the device."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    kind = families.get(family)
    if weights == "demo":
        return Drawn(kind.load(sources.find(kind.facts.default_base), ["denoiser", "vae", "text"], dtype, device), resolution)
    import diffusers

    configs = CONFIGS / family
    index = read_json(sources.find(kind.facts.default_base).path / "model_index.json")
    parts: dict[str, Any] = {name: None for name, value in index.items() if isinstance(value, list) and name in PIPELINE_PARTS}
    for name, own in ((kind.facts.denoiser, dtype), ("vae", torch.float32)):
        parts[name] = _random(read_json(configs / name / "config.json"), own, device)
    schedule = read_json(configs / "scheduler" / "scheduler_config.json")
    parts["scheduler"] = getattr(diffusers, schedule["_class_name"]).from_config(schedule)
    c = Components(Base("random", family, "folder", configs), kind.facts, parts, dtype, device, kind.facts.objective)
    return Drawn(c, resolution)


PIPELINE_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


def adapters(c: Components, n: int, rank: int) -> list[Adapter]:
    """LoRAs of random numbers on the attention of the denoiser."""
    import re

    wanted = re.compile("|".join(f"(?:{pattern})" for pattern in c.facts.lora_targets["attention"]))
    prefix = f"{c.facts.denoiser}."
    shapes = {path: tuple(module.weight.shape) for path, module in module_map(c).items() if path.startswith(prefix)}  # type: ignore[union-attr, arg-type]
    chosen = {path: shape for path, shape in shapes.items() if wanted.fullmatch(path.removeprefix(prefix))}
    return [Adapter(c.facts.name, {path: _layer(shape, rank, seed) for seed, (path, shape) in enumerate(chosen.items(), 1000 * i)}) for i in range(n)]


def _layer(shape: tuple[int, ...], rank: int, seed: int) -> LowRank:
    draw = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, shape[1], generator=draw) / shape[1] ** 0.5
    return LowRank(down, torch.randn(shape[0], rank, generator=draw) * 0.02, float(rank))


def _random(config: dict[str, Any], dtype: torch.dtype, device: torch.device) -> nn.Module:
    import diffusers

    with torch.device("meta"):
        model: nn.Module = getattr(diffusers, config["_class_name"]).from_config(config)
    model = model.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
    return model.requires_grad_(False).eval()


def _shapes(c: Components) -> dict[str, tuple[int, ...]]:
    config: Any = c.denoiser.config
    if c.facts.denoiser == "unet":
        return {"prompt_embeds": (77, config.cross_attention_dim), "pooled_prompt_embeds": (config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim,)}
    return {"prompt_embeds": (512, config.joint_attention_dim), "pooled_prompt_embeds": (config.pooled_projection_dim,)}


def _drain(events: Iterator[Event]) -> None:
    for _ in events:
        pass
