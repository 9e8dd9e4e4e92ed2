"""The sheet of a grid: all its pictures in one PNG, with what changes along the sides written beside them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studio.config.generating.grid import Axis
from studio.metadata import write_atomic

MOST_PIXELS = 8192  # of a side
GAP = 4
PAPER, INK = (16, 18, 22), (232, 234, 239)


def compose(pictures: Sequence[Path], axes: Sequence[Axis], target: Path) -> None:
    """Write the pictures, in the order of the grid's cells, with labels; made smaller where the sheet would be beyond MOST_PIXELS."""
    from PIL import Image, ImageDraw

    columns, rows, layers = ([len(axis.values) for axis in axes] + [1, 1, 1])[:3]
    sizes = []
    for path in pictures:
        with Image.open(path) as image:
            sizes.append(image.size)
    width, height = (max(size[i] for size in sizes) for i in (0, 1))
    scale = min(1.0, (MOST_PIXELS / 1.15) / (columns * (width + GAP)), (MOST_PIXELS / 1.1) / (rows * layers * (height + GAP)))
    width, height = max(1, int(width * scale)), max(1, int(height * scale))
    letters = max(11, min(width, height) // 9)
    font = _font(letters)
    line = int(letters * 1.7)
    left = 0 if len(axes) < 2 else min(width, 12 + max(int(font.getlength(label)) for label in _labels(axes[1])))
    band = (line if len(axes) > 2 else 0) + line
    page = Image.new("RGB", (left + columns * (width + GAP) + GAP, layers * (band + rows * (height + GAP))), PAPER)
    pen = ImageDraw.Draw(page)
    for layer in range(layers):
        top = layer * (band + rows * (height + GAP))
        if len(axes) > 2:
            _write(pen, _labels(axes[2])[layer], (GAP, top, page.width - GAP, top + line), font)
        for column, label in enumerate(_labels(axes[0]) if axes else []):
            x = left + GAP + column * (width + GAP)
            _write(pen, label, (x, top + band - line, x + width, top + band), font)
        for row in range(rows):
            y = top + band + row * (height + GAP)
            if len(axes) > 1:
                _write(pen, _labels(axes[1])[row], (0, y, left, y + height), font)
            for column in range(columns):
                with Image.open(pictures[(layer * rows + row) * columns + column]) as image:
                    shown = image.convert("RGB")
                    shown.thumbnail((width, height), Image.Resampling.LANCZOS)
                    page.paste(shown, (left + GAP + column * (width + GAP), y))
    content = io.BytesIO()
    page.save(content, "PNG")
    write_atomic(target, [content.getvalue()])


def _labels(axis: Axis) -> list[str]:
    return [f"{axis.title} {value}" if axis.kind not in ("prompt", "negative_prompt", "lora") else value for value in axis.values]


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _write(pen: Any, text: str, box: tuple[int, int, int, int], font: Any) -> None:
    """One line in the middle of a box, cut where it does not fit."""
    room = box[2] - box[0] - 6
    while text and font.getlength(text) > room:
        text = text[:-2].rstrip(" .…") + "…" if len(text) > 2 else ""
    pen.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), text, INK, font, anchor="mm")
