"""How the denoiser runs: what is chosen and why, and that no way to run changes what comes out."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from studio.families.base import Components
from studio.generation import attention
from studio.generation import running as ways
from studio.generation.graphs import LOOKS, Graphs
from studio.generation.running import choose, release, running
from studio.generation.stack import Stack
from tests.generation.conftest import adapter
from tests.generation.test_live import look, near


@pytest.mark.parametrize("speed", ["auto", "graph", "eager"])
def test_without_a_gpu_the_denoiser_runs_as_it_is_and_says_why(c: Components, speed) -> None:
    expected, own = look(c), c.denoiser.forward
    with running(c, lambda: "", speed) as runner:
        assert runner.how == "eager" and c.denoiser.forward == own and torch.equal(look(c), expected)
        assert runner.facts["speed"] == ("eager: asked for" if speed == "eager" else "eager: graphs need an NVIDIA GPU, and this is cpu")
    release(c)


def test_what_cannot_be_captured_runs_on_and_is_told() -> None:
    calls = []

    def double(x: torch.Tensor, *, scale: float) -> torch.Tensor:
        calls.append(1)
        return x * scale

    graphs = Graphs(double)
    for n in range(1, LOOKS + 3):
        assert torch.equal(graphs.run("", torch.device("cpu"), torch.full((2,), float(n)), scale=2.0), torch.full((2,), 2.0 * n))
    assert graphs.refused.startswith("it cannot be captured (") and not len(graphs) and len(calls) >= LOOKS + 2


def test_attention_is_counted_by_shape() -> None:
    query, key = torch.randn(1, 2, 8, 4), torch.randn(1, 2, 3, 4)

    def call() -> torch.Tensor:
        return scaled_dot_product_attention(query, key, key) + scaled_dot_product_attention(query, key, key) + scaled_dot_product_attention(query, query, query)

    found, shapes = attention.seen(call)
    assert torch.equal(found, call()) and shapes == {((1, 2, 8, 4), (1, 2, 3, 4)): 2, ((1, 2, 8, 4), (1, 2, 8, 4)): 1}
    assert attention.fastest(shapes, torch.device("cpu"), torch.float32) == attention.Choice()


@pytest.mark.parametrize("cache", [0.0, 1e-9])
def test_the_first_look_of_a_loaded_base_is_bit_for_bit_what_later_ones_are(c: Components, monkeypatch: pytest.MonkeyPatch, cache: float) -> None:
    """With a choice of kernels that round otherwise than the library's own; a CPU captures nothing, so looks run on plainly."""
    monkeypatch.setattr(ways, "choose", lambda c, speed: ("graph", "asked for"))
    monkeypatch.setattr(attention, "fastest", lambda *_: attention.Choice(("MATH",)))
    usual = look(c)
    with running(c, lambda: "", "graph", cache) as runner:
        first, second = look(c), look(c)
        assert len(runner.attention) == 1 and runner.looks == ({"looks": {"whole": 2, "short": 0}} if cache else {})
    release(c)
    assert torch.equal(first, second) and not torch.equal(first, usual)


@pytest.mark.gpu
@pytest.mark.parametrize("speed", ["graph"])
def test_replayed_looks_are_those_of_the_plain_denoiser_whatever_the_stack(c: Components, speed) -> None:
    from studio.generation.sampler import open_base

    own = open_base(c.base, "fp32", "cuda")
    stack, one, other = Stack(own), adapter(own, 1), adapter(own, 2)
    changes = [([], "auto"), ([(one, 0.7)], "baked"), ([(one, 0.2), (other, -1.0)], "baked"), ([(one, 0.7)], "live"), ([(other, 0.4)], "live"), ([], "auto")]
    expected = []
    for rows, mode in changes:
        stack.set(rows, mode=mode)  # type: ignore[arg-type]
        expected.append(look(own))
    with running(own, lambda: stack.layout, speed) as runner:
        for _ in range(2):
            for (rows, mode), wanted in zip(changes, expected, strict=True):
                stack.set(rows, mode=mode)  # type: ignore[arg-type]
                for _ in range(LOOKS + 2):
                    assert near(look(own), wanted, 1e-3)
        assert runner.graphs and len(runner.graphs) >= 2 and not runner.graphs.refused
    release(own)


def test_the_choice_says_when_the_denoiser_is_not_whole_on_the_gpu(c: Components) -> None:
    from dataclasses import replace

    assert choose(replace(c, device=torch.device("cuda")), "auto") == ("eager", "parts of the denoiser wait in main memory")
