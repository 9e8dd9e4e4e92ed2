import numpy
import pytest
from PIL import Image, ImageDraw

from studio.errors import ImageError
from studio.evaluation.style import SIDE, Gaussian, describe, edges, frechet, style_distance


def drawings(colour: tuple[int, int, int], n: int = 4, width: int = 3, side: int = SIDE) -> list[Image.Image]:
    found = []
    for i in range(n):
        image = Image.new("RGB", (side, side), (250, 250, 245))
        ImageDraw.Draw(image).ellipse((10 + i, 20, 80, 90 + i), fill=colour, outline=(0, 0, 0), width=width)
        found.append(image)
    return found


def test_the_same_set_is_at_distance_0_in_any_order() -> None:
    pictures = drawings((200, 30, 30))
    assert style_distance(pictures, pictures[::-1]) < 1e-6


def test_plain_colours_are_as_far_as_their_values() -> None:
    """Without variance the distance is that of the means: sqrt(3) between black and white."""
    black, white = Image.new("RGB", (SIDE, SIDE)), Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    assert style_distance([black], [white]) == pytest.approx(3**0.5)
    assert style_distance([black], [Image.new("RGB", (SIDE, SIDE), (0, 51, 0))]) == pytest.approx(0.2)


def test_one_dimension_agrees_with_the_closed_form() -> None:
    """d^2 = (m1 - m2)^2 + (s1 - s2)^2."""
    one, other = (Gaussian(numpy.array([mean]), numpy.array([[deviation**2]])) for mean, deviation in ((0.2, 0.3), (0.7, 0.1)))
    assert frechet(one, other) == pytest.approx((0.5**2 + 0.2**2) ** 0.5)


def test_covariances_that_commute_agree_with_the_closed_form() -> None:
    """With shared axes d^2 = |m1 - m2|^2 + sum of (sqrt(a) - sqrt(b))^2 over the variances along them."""
    axes, _ = numpy.linalg.qr(numpy.random.default_rng(3).normal(size=(4, 4)))
    a, b = numpy.array([0.4, 0.1, 0.02, 0.0]), numpy.array([0.1, 0.3, 0.02, 0.05])
    one, other = (Gaussian(numpy.zeros(4), (axes * values) @ axes.T) for values in (a, b))
    assert frechet(one, other) == pytest.approx(((numpy.sqrt(a) - numpy.sqrt(b)) ** 2).sum() ** 0.5, abs=1e-7)
    assert frechet(one, other) == pytest.approx(frechet(other, one), abs=1e-7)


def test_gaussian_pixels_are_described_by_their_own_numbers() -> None:
    draw = numpy.random.default_rng(0)
    pixels = numpy.clip(draw.normal([120, 90, 160], [20, 30, 10], size=(SIDE, SIDE, 3)), 0, 255).astype("uint8")
    found = describe([Image.fromarray(pixels)])
    assert found.mean[:3] * 255 == pytest.approx([120, 90, 160], abs=1)
    assert numpy.sqrt(numpy.diag(found.covariance))[:3] * 255 == pytest.approx([20, 30, 10], abs=1)


def test_palette_and_line_weight_both_count_and_subject_does_not() -> None:
    red = drawings((200, 30, 30))
    mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in red]
    assert style_distance(red, mirrored) < 1e-4 < style_distance(red, drawings((200, 30, 30), width=8)) < style_distance(red, drawings((30, 30, 200)))


def test_a_larger_copy_is_the_same_style() -> None:
    assert style_distance(drawings((200, 30, 30)), [image.resize((512, 512), Image.Resampling.LANCZOS) for image in drawings((200, 30, 30))]) < 0.02


def test_a_full_step_is_an_edge_of_1_and_a_flat_field_of_0() -> None:
    field = numpy.zeros((8, 8))
    assert edges(field).max() == 0
    field[:, 4:] = 1
    assert edges(field)[4].tolist() == [0, 0, 0, 1, 1, 0, 0, 0]
    assert (edges(field.T) == edges(field).T).all()


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ImageError, match="no pictures"):
        style_distance([], drawings((0, 0, 0)))
