"""Endless captioned pictures for the demo bases: emoji on plain backgrounds, composed on the training device."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from studio.demo.sprites import Emoji, draw, emojis, find_font

SIDE = 128
BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (20, 20, 20),
    "red": (220, 50, 47),
    "orange": (245, 150, 50),
    "yellow": (250, 220, 90),
    "green": (90, 180, 90),
    "teal": (50, 160, 160),
    "blue": (70, 130, 220),
    "light blue": (170, 215, 245),
    "navy": (30, 40, 100),
    "purple": (140, 90, 190),
    "pink": (250, 170, 200),
    "gray": (150, 150, 150),
    "brown": (130, 90, 60),
    "beige": (235, 220, 190),
}
SHARE_OF_PAIRS = 0.15
SHARE_OF_SMALL = 0.07
SHARE_OF_WHITE = 0.4
SHARE_OF_ALIASES = 0.3
SHARE_OF_CAPITALS = 0.1


@dataclass(frozen=True)
class Scenes:
    """What is on a batch of pictures, all (B,): emoji, second emoji, whether there is a second, whether small, background."""

    first: Tensor
    second: Tensor
    pair: Tensor
    small: Tensor
    background: Tensor


class Renderer:
    """Composes sprites onto backgrounds on one device; draws its randomness from torch's default generator there."""

    def __init__(self, device: torch.device, font: Path | None = None, n_emojis: int | None = None) -> None:
        path = find_font(font)
        self.device = device
        self.emojis: list[Emoji] = list(emojis()[:n_emojis])
        resized = [draw(emoji, path).resize((SIDE, SIDE), Image.Resampling.LANCZOS) for emoji in self.emojis]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).to(device).permute(0, 3, 1, 2).float() / 255
        self.sprites = torch.cat([pixels[:, :3] * pixels[:, 3:], pixels[:, 3:]], 1)  # premultiplied, so that resampling keeps edges clean
        self.colours = torch.tensor(list(BACKGROUNDS.values()), device=device).float() / 255

    def draw(self, n: int, free: bool = False) -> tuple[Tensor, Scenes]:
        """Pictures (n, 3, 128, 128) in [-1, 1] and what is on them. `free` varies colours and places more, for the VAE."""
        scenes = self.scenes(n)
        wide = torch.rand(n, device=self.device)
        scale = torch.where(scenes.pair, 0.46 + 0.04 * wide, torch.where(scenes.small, 0.42 + 0.06 * wide, 0.76 + 0.12 * wide))
        jitter = torch.rand(3, n, device=self.device) - 0.5
        reach = torch.where(scenes.small, 0.3, 0.08)
        x = torch.where(scenes.pair, -0.5 + 0.03 * jitter[0], reach * jitter[0])
        y = reach * jitter[1]
        paper = self.colours[scenes.background]
        if free:
            any_colour = torch.rand(n, 1, device=self.device) < 0.4
            paper = torch.where(any_colour, torch.rand(n, 3, device=self.device), paper)
            scale = scale * (0.8 + 0.5 * torch.rand(n, device=self.device))
            x = x + 0.5 * jitter[2]
        picture = paper[:, :, None, None].expand(n, 3, SIDE, SIDE)
        picture = _over(self._place(scenes.first, scale, x, y), picture)
        other = self._place(scenes.second, scale, 0.06 * jitter[2] - x, y)
        picture = _over(other * scenes.pair[:, None, None, None], picture)
        return (picture * 2 - 1).clamp(-1, 1), scenes

    def captions(self, scenes: Scenes, rng: random.Random) -> list[str]:
        """A caption for each picture, worded at random: "cat face", "a cat face on a blue background", "donut next to cup"."""
        names = list(BACKGROUNDS)
        rows = zip(scenes.first.tolist(), scenes.second.tolist(), scenes.pair.tolist(), scenes.small.tolist(), scenes.background.tolist(), strict=True)
        return [caption(self.emojis[a], self.emojis[b] if pair else None, names[paper], small, rng) for a, b, pair, small, paper in rows]

    def scenes(self, n: int) -> Scenes:
        """What n pictures are to show, drawn at random."""
        kind = torch.rand(n, device=self.device)
        first, second = (torch.randint(len(self.emojis), (n,), device=self.device) for _ in range(2))
        coloured = torch.randint(len(BACKGROUNDS), (n,), device=self.device)
        white = torch.rand(n, device=self.device) < SHARE_OF_WHITE
        return Scenes(first, second, kind < SHARE_OF_PAIRS, kind > 1 - SHARE_OF_SMALL, torch.where(white, 0, coloured))

    def _place(self, index: Tensor, scale: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Sprites (n, 4, 128, 128) shrunk by `scale` and moved; x and y from -1 to 1."""
        theta = torch.zeros(len(index), 2, 3, device=self.device)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
        theta[:, 0, 2], theta[:, 1, 2] = -x / scale, -y / scale
        sprites = self.sprites[index]
        return F.grid_sample(sprites, F.affine_grid(theta, list(sprites.shape), align_corners=False), align_corners=False)


def caption(first: Emoji, second: Emoji | None, background: str, small: bool, rng: random.Random) -> str:
    """One wording of many for what is on a picture."""
    adjective = "small" if small else ""
    article = rng.random() < 0.5
    text = _named(first, article, adjective, rng)
    if second is not None:
        joint = " next to " if rng.random() < 0.8 else " and "
        text += joint + _named(second, article, "", rng)
    if background != "white" or rng.random() < 0.35:
        text += f" on a {background} background" if rng.random() < 0.9 else f", {background} background"
    return text[0].upper() + text[1:] if rng.random() < SHARE_OF_CAPITALS else text


def _named(emoji: Emoji, article: bool, adjective: str, rng: random.Random) -> str:
    if emoji.alias and rng.random() < SHARE_OF_ALIASES:
        emoji = Emoji(emoji.character, emoji.alias, "", "an" if emoji.alias[0] in "aeiou" else "a")
    return emoji.with_article(adjective) if article else f"{adjective} {emoji.name}".strip()


def _over(top: Tensor, bottom: Tensor) -> Tensor:
    """Premultiplied RGBA laid on RGB."""
    return top[:, :3] + bottom * (1 - top[:, 3:])
