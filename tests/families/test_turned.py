"""Claims about the one pass for queries and keys: it gives what the library's norms and rotary positions give, forward and backward."""

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxPosEmbed

from studio.families.kernels import turned
from studio.training import lean

HEADS, WIDTH, IMAGE, TEXT = 3, 16, 12, 5


def attention(two: bool, device: str = "cpu", dtype: torch.dtype = torch.float32) -> FluxAttention:
    """A random attention of FLUX.1 whose streams come as one product each, as fused layers make them."""
    torch.manual_seed(1)
    n = HEADS * WIDTH
    made = FluxAttention(n, HEADS, WIDTH, bias=True, added_kv_proj_dim=n if two else None, pre_only=not two, context_pre_only=False if two else None, eps=1e-6)
    for name, parameter in made.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
    made.fuse_projections()
    return made.requires_grad_(False).to(device, dtype)


def inputs(two: bool, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(2)
    streams = [torch.randn(2, tokens, HEADS * WIDTH, device=device, dtype=dtype, requires_grad=True) for tokens in (IMAGE, *((TEXT,) if two else ()))]
    places = torch.randint(0, 9, (IMAGE + (TEXT if two else 0), 3)).float()
    return streams, tuple(table.to(device) for table in FluxPosEmbed(10000, [4, 6, 6])(places))  # type: ignore[return-value]


def both_ways(module: FluxAttention, streams: list[torch.Tensor], rotary: tuple[torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
    """What the attention gives, and the gradients on its streams."""
    found = module(*streams, image_rotary_emb=rotary)
    outs = list(found) if isinstance(found, tuple) else [found]
    torch.manual_seed(3)
    total = sum((out * torch.randn(out.shape, dtype=torch.float32).to(out)).sum() for out in outs)
    assert isinstance(total, torch.Tensor)
    return [*outs, *torch.autograd.grad(total, streams)]


@pytest.mark.parametrize("two", [False, True])
def test_an_attention_in_one_pass_gives_what_the_library_gives(two):
    module, (streams, rotary) = attention(two), inputs(two)
    theirs = both_ways(module, streams, rotary)
    made = lean.lean(module, torch.device("cpu"), compiled=False)
    assert module.__dict__["forward"].__func__ is lean._joint_attention
    for ours, expected in zip(both_ways(module, streams, rotary), theirs, strict=True):
        assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-5)
    still = both_ways(module, streams, (torch.ones_like(rotary[0]), torch.zeros_like(rotary[1])))
    assert not torch.allclose(still[0], theirs[0], rtol=1e-2), "positions make no difference"
    made.undo()
    assert all(torch.equal(a, b) for a, b in zip(both_ways(module, streams, rotary), theirs, strict=True))


def test_heads_that_the_kernel_does_not_take_stay_the_librarys():
    apart, odd = attention(True), attention(True)
    apart.fused_projections, odd.head_dim = False, 24
    for module in (apart, odd):
        assert not lean._joined(module)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("two", [False, True])
def test_the_kernel_gives_what_plain_torch_gives(two, dtype):
    """bf16: numbers near 4 are 1/64 apart."""
    streams, rotary = inputs(two)
    parts = [torch.randn(2, stream.shape[1], 3 * HEADS * WIDTH).to(dtype) for stream in reversed(streams)]
    norms = [torch.rand(WIDTH).to(dtype) + 0.5 for _ in range(2 * len(parts))]
    grads = [torch.randn(2, rotary[0].shape[0], HEADS, WIDTH).to(dtype) for _ in range(3)]

    def found(device: str) -> list[torch.Tensor]:
        own, weights, back = ([tensor.to(device) for tensor in some] for some in (parts, norms, grads))
        tables = [table.to(device) for table in rotary]
        return [*turned.turn(own, weights, tables, HEADS, 1e-6), *turned.turn_back(*back, own, weights, tables, HEADS, 1e-6)]

    for here, there in zip(found("cpu"), found("cuda"), strict=True):
        assert torch.allclose(there.cpu().float(), here.float(), atol=1e-5 if dtype == torch.float32 else 1 / 32)
