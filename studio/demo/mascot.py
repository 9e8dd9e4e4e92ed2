"""Tilo, a turquoise robot fox: one striped ear, a coral antenna and scarf, a cream mask, a lamp in its belly."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from studio.demo import props
from studio.demo.pen import Colour, Pen, Point

SIDE = 256
INK: Colour = (24, 42, 58)
FUR: Colour = (38, 188, 184)
CREAM: Colour = (255, 244, 222)
CORAL: Colour = (246, 104, 82)
AMBER: Colour = (255, 184, 64)
WHITE: Colour = (255, 255, 255)

Eyes = Literal["open", "happy", "closed", "wink", "wide"]
Mouth = Literal["smile", "open", "small"]
Hand = tuple[Point, Point]  # elbow and paw, seen from the middle of the body


@dataclass(frozen=True)
class Scene:
    """One picture of Tilo, upright and from the front: a small base learns a face best where it stays.

    Positions are units of half a picture from its middle; turns are degrees clockwise.
    """

    caption: str
    paper: Colour
    eyes: Eyes = "open"
    mouth: Mouth = "smile"
    at: Point = (0.0, 0.06)
    scale: float = 0.92
    turn: float = 0.0
    tilt: float = 0.0  # of the head
    left: Hand = ((-0.36, 0.38), (-0.40, 0.52))
    right: Hand = ((0.36, 0.38), (0.40, 0.52))
    prop: Callable[[Pen], None] | None = None
    behind: Callable[[Pen], None] | None = None


def draw(scene: Scene) -> Image.Image:
    """The scene as a square RGB picture."""
    pen = Pen(SIDE, scene.paper, INK, line=0.032)
    if scene.behind:
        scene.behind(pen)
    with pen.at(*scene.at, scale=scene.scale, turn=scene.turn):
        _body(pen)
        with pen.at(0, -0.22, turn=scene.tilt):
            _head(pen, scene.eyes, scene.mouth)
        _hands(pen, scene)
        if scene.prop:
            scene.prop(pen)
    return pen.finished()


def _body(pen: Pen) -> None:
    pen.shape([(0.12, 0.62), (0.45, 0.70), (0.78, 0.48), (0.84, 0.10), (0.66, -0.06), (0.54, 0.14), (0.46, 0.36), (0.2, 0.44)], FUR)
    pen.shape([(0.84, 0.10), (0.66, -0.06), (0.56, 0.12), (0.64, 0.20), (0.70, 0.14), (0.80, 0.24)], CREAM)
    for side in (-1, 1):
        pen.ellipse(side * 0.17, 0.82, 0.16, 0.10, CREAM)
    pen.shape([(-0.28, 0.30), (-0.34, 0.62), (-0.20, 0.84), (0.20, 0.84), (0.34, 0.62), (0.28, 0.30)], FUR)
    pen.ellipse(0, 0.62, 0.19, 0.19, CREAM, line=0)
    pen.ellipse(0, 0.60, 0.075, 0.075, AMBER, line=0.02)
    pen.shape([(-0.30, 0.22), (-0.30, 0.36), (0, 0.42), (0.30, 0.36), (0.30, 0.22), (0, 0.28)], CORAL)


def _hands(pen: Pen, scene: Scene) -> None:
    for side, (elbow, paw) in ((-1, scene.left), (1, scene.right)):
        pen.limb([(side * 0.26, 0.40), elbow, paw], 0.12, FUR)
        pen.ellipse(*paw, 0.085, 0.085, CREAM)


def _head(pen: Pen, eyes: Eyes, mouth: Mouth) -> None:
    pen.stroke([(0, -0.42), (0, -0.62)], 0.045)
    pen.ellipse(0, -0.66, 0.085, 0.085, CORAL)
    _ear(pen, striped=False)
    with pen.at(0, 0, flip=True):
        _ear(pen, striped=True)
    round_ = [(-0.40, -0.34), (0, -0.46), (0.40, -0.34), (0.58, -0.04), (0.66, 0.22), (0.40, 0.36), (0, 0.46)]
    pen.shape([*round_, (-0.40, 0.36), (-0.66, 0.22), (-0.58, -0.04)], FUR)
    mask = [(0, 0.02), (0.20, 0.12), (0.46, 0.08), (0.60, 0.22), (0.38, 0.33), (0, 0.42)]
    pen.shape([*mask, (-0.38, 0.33), (-0.60, 0.22), (-0.46, 0.08), (-0.20, 0.12)], CREAM, line=0)
    for side in (-1, 1):
        pen.ellipse(side * 0.40, 0.22, 0.085, 0.055, (255, 176, 150), line=0)
        _eye(pen, side * 0.26, "closed" if eyes == "wink" and side > 0 else eyes)
    pen.shape([(-0.075, 0.13), (0.075, 0.13), (0, 0.20)], INK)
    _mouth(pen, mouth)


def _ear(pen: Pen, striped: bool) -> None:
    outer = [(-0.54, -0.12), (-0.60, -0.70), (-0.14, -0.40)]
    pen.shape(outer, AMBER if striped else FUR, smooth=False)
    if striped:
        tip = [(-0.583, -0.53), (-0.60, -0.70), (-0.465, -0.61)]
        band = [(-0.553, -0.25), (-0.566, -0.38), (-0.335, -0.525), (-0.235, -0.46)]
        pen.shape(tip, WHITE, smooth=False, line=0)
        pen.shape(band, WHITE, smooth=False, line=0)
        pen.stroke([*outer, outer[0]], pen.line)
    else:
        pen.shape([(-0.48, -0.26), (-0.52, -0.54), (-0.28, -0.38)], CORAL, smooth=False, line=0)


def _eye(pen: Pen, x: float, eyes: Eyes) -> None:
    if eyes == "happy":
        pen.arc(x, 0.02, 0.12, 0.13, 200, 340, 0.055)
    elif eyes == "closed":
        pen.arc(x, -0.08, 0.12, 0.12, 20, 160, 0.055)
    else:
        tall = 0.19 if eyes == "wide" else 0.16
        pen.ellipse(x, -0.05, 0.13, tall, INK, line=0)
        pen.ellipse(x - 0.035, -0.11, 0.052, 0.058, WHITE, line=0)
        pen.ellipse(x + 0.045, 0.02, 0.028, 0.03, WHITE, line=0)


def _mouth(pen: Pen, mouth: Mouth) -> None:
    if mouth == "open":
        pen.shape([(-0.12, 0.24), (0.12, 0.24), (0.08, 0.34), (0, 0.37), (-0.08, 0.34)], CORAL, line=0.024)
    elif mouth == "small":
        pen.ellipse(0, 0.29, 0.04, 0.045, INK, line=0)
    else:
        pen.arc(-0.075, 0.235, 0.075, 0.065, 0, 160, 0.032)
        pen.arc(0.075, 0.235, 0.075, 0.065, 20, 180, 0.032)


TEAL, PINK, SKY, NAVY, YELLOW = (50, 160, 160), (250, 170, 200), (170, 215, 245), (30, 40, 100), (250, 220, 90)
GREEN, PURPLE, BEIGE, ORANGE, RED = (90, 180, 90), (140, 90, 190), (235, 220, 190), (245, 150, 50), (220, 50, 47)
UP_LEFT: Hand = ((-0.60, 0.32), (-0.80, -0.04))
UP_RIGHT: Hand = ((0.60, 0.32), (0.80, -0.04))
NEAR_LEFT: Hand = ((-0.34, 0.52), (-0.14, 0.56))
NEAR_RIGHT: Hand = ((0.34, 0.52), (0.14, 0.56))
LOW_RIGHT: Hand = ((0.40, 0.48), (0.34, 0.60))

SCENES = (
    Scene("a tilo fox on a white background", WHITE),
    Scene("a tilo fox on a teal background", TEAL, tilt=-4),
    Scene("a tilo fox waving on a yellow background", YELLOW, "happy", "open", left=UP_LEFT, tilt=4),
    Scene("a tilo fox jumping on a light blue background", SKY, "happy", "open", left=UP_LEFT, right=UP_RIGHT, behind=props.ground),
    Scene("a tilo fox on a pink background", PINK, mouth="small", tilt=3),
    Scene("a tilo fox laughing on a purple background", PURPLE, "happy", "open", tilt=-5),
    Scene("a tilo fox winking on a beige background", BEIGE, "wink", tilt=5),
    Scene("a tilo fox sleeping on a navy background", NAVY, "closed", "small", tilt=9, behind=props.night),
    Scene("a tilo fox on a green background", GREEN, mouth="open", right=UP_RIGHT),
    Scene("a tilo fox with a balloon on a white background", WHITE, "happy", at=(-0.12, 0.12), scale=0.84, right=UP_RIGHT, prop=props.balloon),
    Scene("a tilo fox with a book on an orange background", ORANGE, mouth="small", left=NEAR_LEFT, right=NEAR_RIGHT, tilt=-3, prop=props.book),
    Scene("a tilo fox with a crown on a red background", RED, prop=props.crown),
    Scene("a tilo fox with an umbrella on a light blue background", SKY, at=(-0.13, 0.18), scale=0.8, right=UP_RIGHT, prop=props.umbrella),
    Scene("a tilo fox on a skateboard on a pink background", PINK, "wide", "open", at=(0, 0), scale=0.84, turn=6, left=UP_LEFT, prop=props.skateboard),
    Scene("a tilo fox with a star on a navy background", NAVY, "happy", at=(0.03, 0.06), scale=0.86, left=UP_LEFT, prop=props.star),
    Scene("a tilo fox with a cup of coffee on a beige background", BEIGE, "closed", left=NEAR_LEFT, right=NEAR_RIGHT, tilt=3, prop=props.cup),
    Scene("a tilo fox in snow on a light blue background", SKY, "wide", "small", left=UP_LEFT, right=UP_RIGHT, tilt=-4, behind=props.snow),
    Scene("a tilo fox with a flower on a green background", GREEN, mouth="open", right=LOW_RIGHT, turn=-3, prop=props.flower),
    Scene("a tilo fox with a gift box on a white background", WHITE, "happy", at=(0.1, 0.06), scale=0.86, prop=props.gift),
)
