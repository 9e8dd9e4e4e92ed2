"""Two looks for any emoji: a blueprint, and a woodcut in three inks. Bold shapes and whole tones only, since the demo VAE blurs
fine lines, and no frames or scenery, which small bases learn at the cost of the figure.

Both take an RGBA sprite and return RGB; they work at twice the side, so that edges come out smooth.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

SIDE = 256
_WORK = 2 * SIDE

Style = Callable[[Image.Image], Image.Image]
Mask = NDArray[np.floating]  # (side, side) in [0, 1]

PAPER_BLUE = (22, 62, 140)
GRID_BLUE = (43, 87, 168)
DARK_WASH = (40, 92, 184)
MIDDLE_WASH = (84, 142, 222)
PALE_WASH = (150, 196, 246)
LINE_WHITE = (226, 240, 255)

CREAM = (246, 232, 203)
INK = (38, 24, 26)
OCHRE = (214, 150, 72)
RED = (220, 50, 47)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def blueprint(sprite: Image.Image) -> Image.Image:
    """Three washes of blue within a bold pale outline, on deep blue paper with a coarse grid."""
    colours, alpha = _fitted(sprite, 0.78)
    light = _equalised(colours @ LUMA, alpha)
    image = _flat(PAPER_BLUE)
    _paint(image, _grid(n_cells=4, width=8), GRID_BLUE)
    _paint(image, alpha, DARK_WASH)
    _paint(image, alpha * (1 - _below(light, 0.35)), MIDDLE_WASH)
    _paint(image, alpha * (1 - _below(light, 0.72)), PALE_WASH)
    _paint(image, _outline(alpha, 15), LINE_WHITE)
    return _finished(image)


def woodcut(sprite: Image.Image) -> Image.Image:
    """Ink and ochre on cream, cut out of a red print; shadows fall into slanting stripes."""
    colours, alpha = _fitted(sprite, 0.78)
    light = _equalised(colours @ LUMA, alpha)
    image = _flat(RED)
    _paint(image, _blurred_threshold(_grow(alpha, 33)), CREAM)  # a broad carved border sets the figure off
    _paint(image, alpha * _below(light, 0.66), OCHRE)
    _paint(image, alpha * np.minimum(_below(light, 0.42), _stripes(period=32, share=0.55)), INK)
    _paint(image, alpha * _below(light, 0.20), INK)
    _paint(image, _outline(alpha, 13), INK)
    return _finished(image)


STYLES: dict[str, Style] = {"blueprint": blueprint, "woodcut": woodcut}


def _fitted(sprite: Image.Image, share: float) -> tuple[Mask, Mask]:
    """Colour (side, side, 3) and alpha of the sprite, centred, its longer side that share of the picture."""
    box = sprite.getbbox()
    cut = sprite.crop(box) if box else sprite
    scale = share * _WORK / max(cut.size)
    size = (round(cut.width * scale), round(cut.height * scale))
    # Resizing premultiplied colours keeps hidden ones out of the edges.
    large = cut.convert("RGBa").resize(size, Image.Resampling.BICUBIC).convert("RGBA")
    canvas = Image.new("RGBA", (_WORK, _WORK), (255, 255, 255, 0))
    canvas.paste(large, ((_WORK - size[0]) // 2, (_WORK - size[1]) // 2))
    pixels = np.asarray(canvas, np.float32) / 255
    return pixels[..., :3], _blurred_threshold(pixels[..., 3])


def _equalised(light: Mask, alpha: Mask) -> Mask:
    """Lightness stretched over the figure, so that dark and pale things use the same inks."""
    inside = light[alpha > 0.5]
    if inside.size == 0:
        return light
    low, high = np.quantile(inside, [0.02, 0.98])
    return np.clip((light - low) / max(high - low, 0.15), 0, 1)


def _outline(alpha: Mask, width: int) -> Mask:
    grown, shrunk = _grow(alpha, width), 1 - _grow(1 - alpha, width // 2)
    return _blurred_threshold(np.clip(grown - shrunk, 0, 1))


def _grow(mask: Mask, width: int) -> Mask:
    """The mask made wider by about width / 2 on each side."""
    image = Image.fromarray((mask * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.MaxFilter(width | 1)), np.float32) / 255


def _blurred_threshold(mask: Mask) -> Mask:
    """The mask with corners rounded and edges two pixels soft."""
    image = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(3))
    return np.clip((np.asarray(image, np.float32) / 255 - 0.5) * 5 + 0.5, 0, 1)


def _below(light: Mask, level: float) -> Mask:
    return _blurred_threshold((light < level).astype(np.float32))


def _stripes(period: int, share: float) -> Mask:
    y, x = np.mgrid[:_WORK, :_WORK]
    phase = ((x + y) % period) / period
    return (phase < share).astype(np.float32)


def _grid(n_cells: int, width: int) -> Mask:
    step = _WORK // n_cells
    at = (np.arange(_WORK) + step // 2) % step < width
    return (at[:, None] | at[None, :]).astype(np.float32)


def _flat(colour: tuple[int, int, int]) -> Mask:
    return np.broadcast_to(np.array(colour, np.float32), (_WORK, _WORK, 3)).copy()


def _paint(image: Mask, mask: Mask, colour: tuple[int, int, int]) -> None:
    image += mask[..., None] * (np.array(colour, np.float32) - image)


def _finished(image: Mask) -> Image.Image:
    return Image.fromarray(image.round().astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
