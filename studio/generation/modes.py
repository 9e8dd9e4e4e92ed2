"""One picture in all its ways: from noise or another picture, in part, drawn again larger, enlarged in tiles."""

from collections.abc import Callable
from collections.abc import Generator as Steps
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from studio import families
from studio.config import GenerateConfig
from studio.families.base import Components
from studio.generation import pictures
from studio.generation.denoise import Done, Guide, Kept, denoise, pixels_per_latent
from studio.generation.schedulers import Schedule, schedule

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as Picture
    from torch import Tensor

T = TypeVar("T")
Making = Steps[Done, None, "Picture"]  # a picture in the making: yields after every look of the denoiser, and results in the picture

TILE_SEED = 2**62  # the noise of a tile has a seed this far from the picture's own


@dataclass(frozen=True)
class Sources:
    """The pictures that one starts from, at the size that is drawn. mask: greys, white is drawn anew."""

    image: "Picture | None" = None
    mask: "Picture | None" = None


@dataclass(frozen=True)
class Pass:
    """One denoising. tile: which part of the enlarged picture; None is all of it."""

    size: tuple[int, int]
    strength: float
    steps: int
    tile: pictures.Tile | None = None

    def schedule(self, c: Components, config: GenerateConfig) -> Schedule:
        return schedule(c, config.sampler, self.steps, self.size, self.strength)


@dataclass(frozen=True)
class Passes:
    """Everything that makes one picture. first: None where a picture is only enlarged."""

    first: Pass | None
    hires: Pass | None
    tiles: tuple[Pass, ...]
    size: tuple[int, int]  # of the finished picture

    @property
    def all(self) -> tuple[Pass, ...]:
        return (*([self.first] if self.first else []), *([self.hires] if self.hires else []), *self.tiles)


def passes(c: Components, config: GenerateConfig) -> Passes:
    """The passes of settings that are all filled in. Raises SettingsError for tiles that overlap too much."""
    size = (config.width or 0, config.height or 0)
    steps = config.steps or 1
    first = Pass(size, config.strength if config.init_image else 1.0, steps)
    hires = None
    if config.hires_scale:
        size = _scaled(size, config.hires_scale, c.facts.size_multiple)
        hires = Pass(size, config.hires_strength, config.hires_steps or steps)
    tiled: tuple[Pass, ...] = ()
    if config.upscale:
        size = _scaled(size, config.upscale, c.facts.size_multiple)
        found = pictures.tiles(size, config.tile or _own_side(c, config), config.tile_overlap, c.facts.size_multiple)
        tiled = tuple(Pass((tile.width, tile.height), config.upscale_strength, steps, tile) for tile in found)
    return Passes(None if first.strength == 0 else first, _unless_none(hires), tuple(one for one in tiled if one.strength), size)


def n_steps(c: Components, config: GenerateConfig) -> int:
    """How often the denoiser is looked at for one picture."""
    return sum(len(one.schedule(c, config)) for one in passes(c, config).all)


@dataclass(frozen=True)
class Drawing:
    """A picture to be drawn: on which base, with which settings, pulled by what, from what. before: see `denoise`."""

    c: Components
    config: GenerateConfig
    guide: Guide
    sources: Sources = Sources()
    before: Callable[[float], None] = lambda _: None

    def steps(self) -> Making:
        """The picture as the iterator's result (`yield from`); yields after every look of the denoiser, counted over all passes."""
        import torch

        c, config = self.c, self.config
        made = passes(c, config)
        generator = torch.Generator().manual_seed(config.seed)
        count = _Count()
        image = yield from count.over(self._first(made.first, generator))
        if config.hires_scale:
            image = pictures.enlarged(image, _scaled(image.size, config.hires_scale, c.facts.size_multiple))
            if made.hires:
                image = pictures.picture((yield from count.over(self._again(made.hires, image, generator))))
        if config.upscale:
            image = pictures.enlarged(image, made.size)
            if made.tiles:
                image = yield from count.over(self._tiled(made.tiles, image))
        return image

    def _first(self, one: Pass | None, generator: "torch.Generator") -> "Steps[Done, None, Picture]":
        image, mask = self.sources.image, self.sources.mask
        if one is None:
            assert image is not None
            return image
        noise = noise_of(self.c, self.config, one.size, generator)
        known = None if image is None else _encoded(self.c, image)
        kept = None
        if known is not None and mask is not None:
            kept = Kept(known, pictures.latent_mask(mask, known.shape).to(known.device))
        latents = yield from self._denoised(one, noise, generator, known, kept)
        drawn = pictures.picture(families.get(self.c.facts.name).decode_latents(self.c, latents))
        return drawn if image is None or mask is None else pictures.composed(drawn, image, mask)

    def _again(self, one: Pass, image: "Picture", generator: "torch.Generator") -> "Steps[Done, None, Tensor]":
        """Pixels (1, 3, H, W) of the picture, drawn over at its size."""
        import torch

        known = _encoded(self.c, image)
        noise = torch.randn(known.shape, generator=generator).to(self.c.device)
        latents = yield from self._denoised(one, noise, generator, known, None)
        return families.get(self.c.facts.name).decode_latents(self.c, latents)

    def _tiled(self, tiles: tuple[Pass, ...], image: "Picture") -> "Steps[Done, None, Picture]":
        import torch

        blend = pictures.Blend(image.size)
        for number, one in enumerate(tiles):
            assert one.tile is not None
            generator = torch.Generator().manual_seed((self.config.seed + TILE_SEED + number) % 2**63)
            values = yield from self._again(one, image.crop(one.tile.box), generator)
            blend.add(one.tile, values, self.config.tile_overlap)
        return pictures.picture(blend.result())

    def _denoised(self, one: Pass, noise: "Tensor", generator: "torch.Generator", known: "Tensor | None", kept: Kept | None) -> "Steps[Done, None, Tensor]":
        schedule = one.schedule(self.c, self.config)
        return denoise(self.c, self.guide, schedule, noise, generators=[generator], start=known, kept=kept, before=self.before)


class _Count:
    """Numbers the steps of several passes through."""

    def __init__(self) -> None:
        self._done = 0

    def over(self, steps: Steps[Done, None, T]) -> Steps[Done, None, T]:
        while True:
            try:
                done = next(steps)
            except StopIteration as ended:
                return ended.value
            self._done += 1
            yield Done(self._done, done.estimate)


def noise_of(c: Components, config: GenerateConfig, size: tuple[int, int], generator: "torch.Generator") -> "Tensor":
    """What a picture starts from, (1, C, h, w) in fp32. Drawn on the CPU: the same on every device and in every format.

    A variation turns the noise of the seed towards that of variation_seed, on the sphere that both lie on.
    """
    import torch

    channels = c.parts["vae"].config.latent_channels
    scale = pixels_per_latent(c)
    shape = (1, channels, size[1] // scale, size[0] // scale)
    noise = torch.randn(shape, generator=generator)
    if config.variation_strength:
        other = torch.randn(shape, generator=torch.Generator().manual_seed(config.variation_seed))
        noise = slerp(noise, other, config.variation_strength)
    return noise.to(c.device)


def slerp(a: "Tensor", b: "Tensor", share: float) -> "Tensor":
    """From a (share 0) to b (share 1) along the great circle, so that the result is as loud as noise is; in a line where they are parallel."""
    import torch

    cosine = ((a / a.norm()) * (b / b.norm())).sum().clamp(-1, 1)
    angle = torch.acos(cosine)
    if float(torch.sin(angle)) < 1e-4:
        return torch.lerp(a, b, share)
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)


def _encoded(c: Components, image: "Picture") -> "Tensor":
    return families.get(c.facts.name).encode_images(c, pictures.pixels(image)).to(c.device)


def _scaled(size: tuple[int, int], scale: float, multiple: int) -> tuple[int, int]:
    width, height = (max(multiple, round(length * scale / multiple) * multiple) for length in size)
    return width, height


def _own_side(c: Components, config: GenerateConfig) -> int:
    """The side of a square as large as what the base draws in one piece."""
    habits = {**c.facts.defaults["generate"], **c.base.habits.get("generate", {})}
    return round((habits["width"] * habits["height"]) ** 0.5)


def _unless_none(one: Pass | None) -> Pass | None:
    return one if one and one.strength else None
