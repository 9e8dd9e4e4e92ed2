"""Claims about drawing in few passes over memory: it gives what the library's blocks give, under every stack, and leaves nothing behind."""

import copy

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from studio import families
from studio.families import flux_lean, lean, sources
from studio.families.base import Components
from studio.families.kernels import modulated
from studio.families.kernels.normed import normed
from studio.generation.caching import FirstBlock
from studio.generation.sampler import open_base
from studio.generation.stack import Stack
from tests.generation.conftest import BASES, adapter
from tests.generation.test_live import look

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(scope="module", params=BASES)
def c(request: pytest.FixtureRequest) -> Components:
    return open_base(sources.find(request.param), "fp32", "cpu")


def made(c: Components) -> lean.Lean:
    found = lean.Lean()
    for model in (c.denoiser, c.parts["vae"]):
        lean.convolutions(model, found)
        flux_lean.transformer(model, found)
    return found


def difference(a: Tensor, b: Tensor) -> float:
    """As a share of b's norm."""
    return float((a.double().cpu() - b.double().cpu()).norm() / b.double().cpu().norm())


def decoded(c: Components) -> Tensor:
    latents = torch.randn(2, c.parts["vae"].config.latent_channels, 6, 8, generator=torch.Generator().manual_seed(4))
    return families.get(c.facts.name).decode_latents(c, latents)


@pytest.mark.parametrize("mode", ["none", "baked", "live"])
def test_looks_and_decoding_are_the_librarys_whatever_the_stack_and_given_back_bit_for_bit(c: Components, mode) -> None:
    stack, words = Stack(c), (".attn", "conv", "proj_mlp", "proj_out", "ff.")
    stack.set([] if mode == "none" else [(adapter(c, 1, words), 0.7), (adapter(c, 2), -0.4)], mode="auto" if mode == "none" else mode)
    try:
        plain, pixels = look(c), decoded(c)
        found = made(c)
        assert sum("forward" in vars(module) for module in c.denoiser.modules()) >= 4
        assert difference(look(c), plain) < 1e-5 and difference(decoded(c), pixels) < 1e-5
        found.undo()
        assert not any("forward" in vars(module) for model in (c.denoiser, c.parts["vae"]) for module in model.modules())
        assert difference(look(c), plain) < 1e-5  # convolutions stay channels-last, and sum in another order
    finally:
        stack.clear()


def test_every_block_of_transformer_and_vae_is_lean() -> None:
    c = open_base(sources.find("demo-flux"), "fp32", "cpu")
    made(c)
    blocks = [*c.denoiser.transformer_blocks, *c.denoiser.single_transformer_blocks]
    assert blocks and all("forward" in vars(block) and "forward" in vars(block.attn) for block in blocks)
    residual = [module for module in c.parts["vae"].modules() if isinstance(module, ResnetBlock2D)]
    assert residual and all("forward" in vars(block) for block in residual)


def test_first_block_caching_finds_lean_blocks_as_it_finds_the_librarys(c: Components) -> None:
    def cached() -> list[Tensor]:
        cache = FirstBlock(c)
        cache.threshold = float("inf")
        with cache.used():
            looks = [cache.run("key", lambda _: look(c)) for _ in range(3)]
        assert cache.short == 1
        return looks

    plain = cached()
    found = made(c)
    assert all(difference(ours, theirs) < 1e-5 for ours, theirs in zip(cached(), plain, strict=True))
    found.undo()


def random(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(device, dtype)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_passes_between_products_are_what_they_say(dtype, device) -> None:
    """Against fp64, for parts of a longer vector and pictures that are parts of others; bf16 rounds once, by at most 1 in 256."""
    bound = 2e-6 if dtype == torch.float32 else 3e-3
    x = random(2, 9, 192, dtype=dtype, device=device)[:, 2:]
    product = random(2, 7, 192, dtype=dtype, device=device)
    shift, scale, gate = random(2, 576, dtype=dtype, device=device).chunk(3, dim=1)
    summed = x.double() + gate.double()[:, None] * product.double()

    def norm(value: Tensor) -> Tensor:
        return layer_norm(value, (192,), eps=1e-6) * (1 + scale.double()[:, None]) + shift.double()[:, None]

    assert difference(modulated.modulated(x, scale, shift, 1e-6), norm(x.double())) < bound
    assert difference(modulated.added(x, gate, product), summed) < bound
    both = modulated.added_and_modulated(x, gate, product, scale, shift, 1e-6)
    assert difference(both[0], summed) < bound and difference(both[1], norm(summed)) < bound
    wide = 20 * random(2, 7, 3000, dtype=dtype, device=device)
    expected = torch.cat([product.double(), gelu(wide.double(), approximate="tanh")], dim=-1)
    assert difference(modulated.joined(product, wide), expected) < bound


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
def test_a_norm_of_numbers_far_from_zero_stays_exact(device) -> None:
    """Sums of squares lose digits where the mean is large: ten spreads away from zero, five digits stay."""
    x = (random(1, 64, 96, 80, dtype=torch.float32, device=device) + 10).contiguous(memory_format=torch.channels_last)
    weight, bias = (random(64 + i, dtype=torch.float32, device=device)[:64].clone() for i in (0, 1))
    expected = torch.nn.functional.silu(torch.nn.functional.group_norm(x.double(), 32, weight.double(), bias.double(), 1e-6))
    assert difference(normed(x, weight, bias, 32, 1e-6, True)[0], expected) < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("base", BASES)
def test_on_a_gpu_lean_looks_and_pictures_are_as_near_to_exact_ones_as_the_librarys(base) -> None:
    """bf16 against fp32 on a processor: lean passes round less often than the library's, and are allowed a tenth more."""
    exact = open_base(sources.find(base), "fp32", "cpu")
    wanted, pixels = look(exact), decoded(exact)
    c = open_base(sources.find(base), "bf16", "cuda")
    plain, decoding = difference(look(c), wanted), difference(decoded(c), pixels)
    made(c)
    assert 0 < difference(look(c), wanted) < 1.1 * plain
    assert difference(decoded(c), pixels) < max(1.1 * decoding, 2e-3)  # TF32 in both


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_picture_of_more_rows_than_a_grid_is_wide_is_normed_whole() -> None:
    x = torch.randn(1, 32, 2048, 1040, device="cuda").contiguous(memory_format=torch.channels_last)
    weight, bias = torch.ones(32, device="cuda"), torch.zeros(32, device="cuda")
    expected = torch.nn.functional.group_norm(copy.copy(x), 8, weight, bias, 1e-6)
    assert difference(normed(x, weight, bias, 8, 1e-6, False)[0], expected) < 1e-5
