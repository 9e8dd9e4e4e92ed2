"""A small vector canvas: smooth shapes with an even outline, drawn large and scaled down."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from PIL import Image, ImageDraw

Point = tuple[float, float]
Colour = tuple[int, int, int]
Matrix = tuple[float, float, float, float, float, float]  # x' = a x + b y + c, y' = d x + e y + f

OVERSAMPLING = 4


class Pen:
    """Draws in units of half a picture: x to the right and y down, both from -1 to 1."""

    def __init__(self, side: int, paper: Colour, ink: Colour, line: float) -> None:
        self.side = side
        self.ink = ink
        self.line = line
        self._half = side * OVERSAMPLING / 2
        self._image = Image.new("RGB", (side * OVERSAMPLING, side * OVERSAMPLING), paper)
        self._draw = ImageDraw.Draw(self._image)
        self._matrix: Matrix = (self._half, 0, self._half, 0, self._half, self._half)

    @contextmanager
    def at(self, x: float, y: float, scale: float = 1.0, turn: float = 0.0, flip: bool = False) -> Iterator[None]:
        """Draw in a frame of its own: moved, scaled, turned clockwise by degrees, mirrored."""
        before = self._matrix
        c, s = math.cos(math.radians(turn)) * scale, math.sin(math.radians(turn)) * scale
        m = -1 if flip else 1
        self._matrix = _product(before, (c * m, -s, x, s * m, c, y))
        yield
        self._matrix = before

    def shape(self, points: Sequence[Point], fill: Colour, smooth: bool = True, line: float | None = None) -> None:
        """A closed shape through the points; `line` 0 leaves the outline out."""
        outline = _curve(points) if smooth else list(points)
        placed = [self._place(point) for point in outline]
        self._draw.polygon(placed, fill=fill)
        self._stroke([*placed, placed[0], placed[1]], self.ink, self.line if line is None else line)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour, turn: float = 0.0, line: float | None = None) -> None:
        c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        round_ = [(math.cos(k * math.pi / 32) * rx, math.sin(k * math.pi / 32) * ry) for k in range(64)]
        self.shape([(x + c * u - s * v, y + s * u + c * v) for u, v in round_], fill, smooth=False, line=line)

    def limb(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        """A thick line with round ends and an outline."""
        placed = [self._place(point) for point in points]
        self._stroke(placed, self.ink, width + 2 * self.line)
        self._stroke(placed, fill, width)

    def stroke(self, points: Sequence[Point], width: float, colour: Colour | None = None) -> None:
        self._stroke([self._place(point) for point in points], colour or self.ink, width)

    def arc(self, x: float, y: float, rx: float, ry: float, start: float, end: float, width: float) -> None:
        """Part of an ellipse between two angles in degrees, clockwise from the right."""
        angles = [math.radians(start + (end - start) * k / 24) for k in range(25)]
        self.stroke([(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles], width)

    def finished(self) -> Image.Image:
        return self._image.resize((self.side, self.side), Image.Resampling.LANCZOS)

    def _place(self, point: Point) -> Point:
        a, b, c, d, e, f = self._matrix
        return a * point[0] + b * point[1] + c, d * point[0] + e * point[1] + f

    def _stroke(self, placed: Sequence[Point], colour: Colour, width: float) -> None:
        pixels = width * math.hypot(self._matrix[0], self._matrix[3])
        if pixels < 1:
            return
        self._draw.line(placed, fill=colour, width=round(pixels), joint="curve")
        r = pixels / 2
        for x, y in (placed[0], placed[-1]):
            self._draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def _product(m: Matrix, n: Matrix) -> Matrix:
    a, b, c, d, e, f = m
    g, h, i, j, k, o = n
    return a * g + b * j, a * h + b * k, a * i + b * o + c, d * g + e * j, d * h + e * k, d * i + e * o + f


def _curve(points: Sequence[Point], steps: int = 12) -> list[Point]:
    """A closed Catmull-Rom curve through the points."""
    n = len(points)
    out = []
    for k in range(n):
        p, q, r, s = (points[(k + offset) % n] for offset in (-1, 0, 1, 2))
        for step in range(steps):
            t = step / steps
            weights = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2)
            x, y = (sum(w * v for w, v in zip(weights, axis, strict=True)) / 2 for axis in zip(p, q, r, s, strict=True))
            out.append((x, y))
    return out
