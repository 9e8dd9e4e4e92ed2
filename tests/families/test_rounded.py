"""Claims about rows rounded to 8 bits behind a GELU or its way back: close to the exact numbers, and the kernels give what plain torch gives."""

import pytest
import torch
from torch.nn.functional import gelu

from studio.families.kernels import rounded
from studio.families.kernels.rounded import LARGEST

HALF = 1 / 16  # of a number with 3 bits of mantissa: the most that rounding moves it
LEAST = 2.0**-10  # half of the smallest number of the format


def inputs(n: int, k: int, ahead: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x (n, k), and as columns of something wider what lies before it (n, ahead) and a gradient (n, k); a row of zeros is among them."""
    torch.manual_seed(4)
    x, wide = 3 * torch.randn(n, k), torch.randn(n, ahead + k)
    x[0, :6] = torch.tensor([0.0, 80.0, -80.0, 3e4, -3e4, -5.0])  # where exp overflows or vanishes
    x[1] = wide[1] = 0
    wide = wide.to(dtype)
    return x.to(dtype), wide[:, :ahead], wide[:, ahead:]


def both(x: torch.Tensor, before: torch.Tensor, grad: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [rounded.rows(x, alone=True), rounded.gelu_rounded(x, None), rounded.gelu_rounded(x, before), rounded.gelu_backward_rounded(grad, x)]


def exact(x: torch.Tensor, before: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    x, before, grad = x.double(), before.double(), grad.double()
    made = gelu(x, approximate="tanh")
    return [x, made, torch.cat([before, made], 1), torch.ops.aten.gelu_backward(grad, x, approximate="tanh")]


def close(found: tuple[torch.Tensor, torch.Tensor], true: torch.Tensor, slack: float) -> None:
    """Every number is the true one but for rounding to 8 bits, and `slack` of the largest in its row."""
    small, scales = found
    assert small.shape == true.shape and scales.shape == (len(true), 1) and scales.dtype == torch.float32
    most = true.abs().amax(1, keepdim=True)
    error = (small.float().double() * scales.double() - true).abs()
    assert bool((error <= HALF * true.abs() + most * (LEAST / LARGEST + slack)).all())
    assert torch.allclose(scales.double() * LARGEST, most.clamp(min=1e-12), rtol=max(slack, 1e-5))


@pytest.mark.parametrize(("n", "k", "ahead"), [(3, 96, 16), (2, 200, 7)])
def test_rows_are_rounded_with_a_scale_each(n, k, ahead):
    given = inputs(n, k, ahead)
    for found, true in zip(both(*given), exact(*given), strict=True):
        close(found, true, 1e-5)
        assert not torch.equal(found[0].float().double() * found[1].double(), true), "nothing was rounded"


def test_what_is_not_finite_stays_visible():
    x = torch.ones(2, 64)
    x[0, 3] = float("nan")
    small, scales = rounded.gelu_rounded(x, None)
    assert (small.float() * scales)[0].isnan().any() and (small.float() * scales)[1].isfinite().all()


def test_two_powers_of_two_hold_a_row():
    for width in (*range(1, 300), 9216, 12288, 15360, 16384):
        first, rest = rounded.parts(width)
        assert first.bit_count() == rest.bit_count() == 1 and first <= width <= first + rest
    assert rounded.parts(12288) == (8192, 4096)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="no CUDA device with 8 bits")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "k", "ahead"), [(7, 12288, 3072), (3, 9216, 16), (5, 1040, 48)])
def test_the_kernels_give_what_is_true(n, k, ahead, dtype):
    given = inputs(n, k, ahead, dtype)
    there = [tensor.cuda() for tensor in (given[0], torch.cat(given[1:], 1))]
    here = both(there[0], there[1][:, :ahead], there[1][:, ahead:])
    for found, true in zip(here, exact(*given), strict=True):
        close((found[0].cpu(), found[1].cpu()), true, 1e-5)
