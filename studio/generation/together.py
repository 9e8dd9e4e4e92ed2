"""Several pictures of one job in one batch of the denoiser: faster on a GPU, and each the same as alone but for its last digits."""

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

from studio import families
from studio.config import GenerateConfig
from studio.families.base import Components
from studio.generation import modes, pictures
from studio.generation.denoise import Done, Guide, denoise

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from torch import Tensor

Making = Generator[Done, None, "list[Picture]"]
Guided = Callable[[GenerateConfig], Guide]


def groups(config: GenerateConfig) -> list[range]:
    """The numbers of the pictures that are drawn at once. Only pictures from noise in one pass are; others are drawn one by one."""
    size = 1 if config.init_image or config.hires_scale or config.upscale else config.batch
    return [range(first, min(first + size, config.count)) for first in range(0, config.count, size)]


def steps(c: Components, configs: Sequence[GenerateConfig], guided: Guided, sources: modes.Sources, before: Callable[[float], None]) -> Making:
    """The pictures as the iterator's result; `Done.steps` counts the looks of all of them. Too little memory halves the batch."""
    import torch

    if len(configs) > 1:
        guides = [guided(config) for config in configs]
        if alike(guides):
            try:
                return (yield from _batch(c, configs, joined(guides), before))
            except torch.OutOfMemoryError:
                pass
            torch.cuda.empty_cache()  # outside the handler, where the failed tensors are still held
    middle = len(configs) // 2
    if middle:
        first = yield from steps(c, configs[:middle], guided, sources, before)
        done = middle * modes.n_steps(c, configs[0])
        second = steps(c, configs[middle:], guided, sources, before)
        return first + (yield from _after(second, done))
    return [(yield from modes.Drawing(c, configs[0], guided(configs[0]), sources, before).steps())]


def latents(c: Components, configs: Sequence[GenerateConfig], guide: Guide, before: Callable[[float], None]) -> "Generator[Done, None, Tensor]":
    """Clean latents (B, C, h, w) of pictures that differ in prompt and noise alone, as the iterator's result; yields after every look."""
    import torch

    one = modes.passes(c, configs[0]).first
    assert one is not None
    generators = [torch.Generator().manual_seed(config.seed) for config in configs]
    noise = torch.cat([modes.noise_of(c, config, one.size, generator) for config, generator in zip(configs, generators, strict=True)])
    return (yield from denoise(c, guide, one.schedule(c, configs[0]), noise, generators=generators, before=before))


def decoded(c: Components, found: "Tensor", image: int) -> "Picture":
    """One picture of a batch: the VAE needs far more memory a picture than the denoiser."""
    return pictures.picture(families.get(c.facts.name).decode_latents(c, found[image : image + 1]))


def _batch(c: Components, configs: Sequence[GenerateConfig], guide: Guide, before: Callable[[float], None]) -> Making:
    looks = latents(c, configs, guide, before)
    while True:
        try:
            done = next(looks)
        except StopIteration as ended:
            return [decoded(c, ended.value, i) for i in range(len(configs))]
        yield Done(done.steps * len(configs), done.estimate)


def _after(looks: Making, done: int) -> Making:
    """The same, counted on from `done`."""
    while True:
        try:
            found = next(looks)
        except StopIteration as ended:
            return ended.value
        yield Done(done + found.steps, found.estimate)


def alike(guides: Sequence[Guide]) -> bool:
    """Whether prompts are of one length, so that they stack."""
    shapes = {tuple((key, tuple(value.shape)) for side in (guide.wanted, guide.unwanted or {}) for key, value in side.items()) for guide in guides}
    return len(shapes) == 1


def joined(guides: Sequence[Guide]) -> Guide:
    """One guide for the batch."""
    import torch

    first = guides[0]
    wanted = {key: torch.cat([guide.wanted[key] for guide in guides]) for key in first.wanted}
    unwanted = None if first.unwanted is None else {key: torch.cat([(guide.unwanted or {})[key] for guide in guides]) for key in first.unwanted}
    return Guide(wanted, unwanted, first.scale, first.rescale, first.told)
