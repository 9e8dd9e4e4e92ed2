"""What is measured on: a base in memory and batches that fit it. Speed and memory do not depend on the values of the weights."""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from studio.data.cache import Batch
from studio.families import get, sources
from studio.families.base import Base, Components, Family
from studio.families.flux import TEXT_TOKENS
from studio.families.parts import CONFIGS, freeze, read_json
from studio.families.sdxl import TOKENS
from studio.training.step import Micro

PATTERN = 2**20  # random numbers that all weights are filled with, over and over
LATENT_PIXELS = 8  # pixels that one latent stands for, either way


@dataclass
class Subject:
    """A loaded denoiser with its family. `seconds`: what loading took."""

    components: Components
    family: Family
    seconds: float
    configs: Path  # folder with the configs of all parts

    @cached_property
    def channels(self) -> int:
        return int(read_json(self.configs / "vae" / "config.json")["latent_channels"])

    def micro(self, resolution: int, batch: int, number: int) -> Micro:
        """Batch `number` of an endless random set, the same for every mode."""
        device, dtype = self.components.device, self.components.dtype
        generator = torch.Generator().manual_seed(number)
        side = resolution // LATENT_PIXELS

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        conditioning = {name: normal(batch, *shape).to(device, dtype) for name, shape in conditioning_shapes(self.components).items()}
        sizes = torch.tensor([[resolution, resolution, 0, 0, resolution, resolution]] * batch, dtype=torch.float32, device=device)
        latents = normal(batch, self.channels, side, side).to(device)
        level = torch.rand(batch, generator=generator)
        return Micro(Batch(latents, conditioning, sizes, ("random",) * batch), normal(*latents.shape).to(device), level.to(device))


def load(family: str, weights: str, dtype: torch.dtype, device: torch.device) -> Subject:
    """The denoiser of a family with the weights that the table asks for."""
    began, kind = time.perf_counter(), get(family)
    if weights == "random":
        components, configs = _random(kind, dtype, device), CONFIGS / family
    else:
        base = sources.find(kind.facts.default_base if weights == "demo" else weights)
        components, configs = kind.load(base, ["denoiser"], dtype, device), base.path
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Subject(components, kind, round(time.perf_counter() - began, 2), configs)


def skeleton(family: Family, configs: Path) -> Any:
    """The family's denoiser without memory, from its config."""
    import diffusers

    config = read_json(configs / family.facts.denoiser / "config.json")
    with torch.device("meta"):
        return getattr(diffusers, config["_class_name"]).from_config(config)


def filled(model: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The model on the device with random weights of the usual spread, frozen, and position ids where it has them."""
    model = model.to(dtype).to_empty(device=device)
    pattern = torch.randn(PATTERN, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        flat = parameter.data.view(-1)
        whole = flat.numel() // PATTERN * PATTERN
        flat[:whole].view(-1, PATTERN).copy_(pattern.expand(whole // PATTERN, PATTERN))
        flat[whole:].copy_(pattern[: flat.numel() - whole])
        parameter.data.mul_(parameter[0].numel() ** -0.5)
    for buffer in model.buffers():
        buffer.copy_(torch.arange(buffer.shape[-1], device=device).expand_as(buffer))
    return freeze(model, device)


def _random(family: Family, dtype: torch.dtype, device: torch.device) -> Components:
    """Full-size parts with random weights of the usual spread, made where they stay."""
    import diffusers

    facts, configs = family.facts, CONFIGS / family.facts.name
    model = filled(skeleton(family, configs), dtype, device)
    schedule = read_json(configs / "scheduler" / "scheduler_config.json")
    scheduler = getattr(diffusers, schedule["_class_name"]).from_config(schedule)
    base = Base("random", facts.name, "folder", configs)
    parts = {facts.denoiser: model, "scheduler": scheduler}
    return Components(base, facts, parts, dtype, device, facts.objective)


def conditioning_shapes(c: Components) -> dict[str, tuple[int, ...]]:
    """Shapes of one picture's conditioning, by what the denoiser's config says of its inputs."""
    config: Any = c.denoiser.config
    if c.facts.denoiser == "unet":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        return {"prompt_embeds": (TOKENS, config.cross_attention_dim), "pooled_prompt_embeds": (pooled,)}
    tokens = int(c.base.habits.get("text_tokens", TEXT_TOKENS))
    return {"prompt_embeds": (tokens, config.joint_attention_dim), "pooled_prompt_embeds": (config.pooled_projection_dim,)}
