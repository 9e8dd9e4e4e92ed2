"""What Tilo holds, wears or stands before, in the frame of its body (paw up on the right is near (0.80, -0.04))."""

import math

from studio.demo.pen import Colour, Pen

RED: Colour = (232, 62, 76)
GOLD: Colour = (255, 204, 62)
SNOW: Colour = (250, 252, 255)
BLUE: Colour = (62, 118, 214)
LEAF: Colour = (58, 140, 66)


def balloon(pen: Pen) -> None:
    pen.stroke([(0.80, -0.08), (0.90, -0.46)], 0.03)
    pen.ellipse(0.92, -0.76, 0.26, 0.32, RED)
    pen.ellipse(0.83, -0.88, 0.06, 0.09, (255, 170, 170), turn=20, line=0)


def book(pen: Pen) -> None:
    for side in (-1, 1):
        with pen.at(0, 0.58, flip=side < 0):
            pen.shape([(0, -0.12), (0.36, -0.18), (0.36, 0.16), (0, 0.22)], BLUE, smooth=False)
            pen.shape([(0.03, -0.07), (0.30, -0.12), (0.30, 0.10), (0.03, 0.15)], SNOW, smooth=False, line=0)


def crown(pen: Pen) -> None:
    with pen.at(0, -0.66):
        pen.shape([(-0.28, 0.10), (-0.34, -0.20), (-0.15, -0.05), (0, -0.28), (0.15, -0.05), (0.34, -0.20), (0.28, 0.10)], GOLD, smooth=False)
        pen.ellipse(0, 0.0, 0.055, 0.055, RED, line=0)


def umbrella(pen: Pen) -> None:
    pen.stroke([(0.80, 0.18), (0.62, -0.94)], 0.05)
    with pen.at(0.58, -0.96, turn=-6):
        round_ = [(0.78 * math.cos(a), -0.50 * math.sin(a)) for a in (math.pi * k / 20 for k in range(21))]
        pen.shape([*round_, (-0.52, 0.10), (-0.26, 0.0), (0, 0.10), (0.26, 0.0), (0.52, 0.10)], RED, smooth=False)
        pen.shape([(-0.26, 0.0), (-0.19, -0.30), (0, -0.49), (0.19, -0.30), (0.26, 0.0), (0, 0.10)], SNOW, smooth=False)


def skateboard(pen: Pen) -> None:
    for x in (-0.34, 0.34):
        pen.ellipse(x, 1.06, 0.09, 0.09, GOLD)
    pen.limb([(-0.62, 0.88), (-0.48, 0.95), (0.48, 0.95), (0.62, 0.88)], 0.07, RED)


def star(pen: Pen) -> None:
    _star(pen, -0.90, -0.14, 0.27, GOLD)


def cup(pen: Pen) -> None:
    pen.arc(0.21, 0.58, 0.11, 0.10, -90, 90, 0.05)
    pen.shape([(-0.19, 0.42), (0.19, 0.42), (0.15, 0.74), (-0.15, 0.74)], SNOW, smooth=False)
    pen.ellipse(0, 0.43, 0.19, 0.06, (112, 66, 44))


def flower(pen: Pen) -> None:
    pen.stroke([(0.34, 0.80), (0.42, 0.34)], 0.05, LEAF)
    for k in range(6):
        pen.ellipse(0.44 + 0.13 * math.cos(k * math.pi / 3), 0.30 + 0.13 * math.sin(k * math.pi / 3), 0.09, 0.09, SNOW, line=0.02)
    pen.ellipse(0.44, 0.30, 0.08, 0.08, GOLD, line=0.02)


def gift(pen: Pen) -> None:
    with pen.at(-0.66, 0.66):
        pen.shape([(-0.26, -0.22), (0.26, -0.22), (0.26, 0.26), (-0.26, 0.26)], RED, smooth=False)
        pen.shape([(-0.07, -0.22), (0.07, -0.22), (0.07, 0.26), (-0.07, 0.26)], GOLD, smooth=False, line=0)
        for side in (-1, 1):
            pen.ellipse(side * 0.11, -0.31, 0.12, 0.08, GOLD, turn=side * -25)


def ground(pen: Pen) -> None:
    pen.ellipse(0, 1.3, 1.5, 0.55, (110, 190, 100), line=0)
    pen.ellipse(0, 0.93, 0.34, 0.06, (76, 152, 76), line=0)


def night(pen: Pen) -> None:
    pen.ellipse(0, 1.35, 1.6, 0.75, (58, 66, 140), line=0)
    pen.ellipse(0.66, -0.62, 0.24, 0.24, (255, 236, 170), line=0)
    pen.ellipse(0.56, -0.68, 0.20, 0.20, (30, 40, 100), line=0)
    for x, y, size in ((-0.72, -0.70, 0.10), (-0.18, -0.80, 0.08), (0.16, -0.52, 0.07)):
        _star(pen, x, y, size, (255, 236, 170), line=0)


def snow(pen: Pen) -> None:
    pen.ellipse(0, 1.25, 1.6, 0.52, SNOW, line=0)
    for x, y in ((-0.80, -0.72), (-0.86, -0.10), (-0.50, -0.86), (0.52, -0.84), (0.84, -0.56), (0.88, 0.02), (-0.78, 0.42), (0.80, 0.48)):
        pen.ellipse(x, y, 0.065, 0.065, SNOW, line=0)


def _star(pen: Pen, x: float, y: float, size: float, fill: Colour, line: float | None = None) -> None:
    turns = [(k * math.pi / 5 - math.pi / 2, size if k % 2 == 0 else size * 0.48) for k in range(10)]
    pen.shape([(x + r * math.cos(a), y + r * math.sin(a)) for a, r in turns], fill, smooth=False, line=line)
