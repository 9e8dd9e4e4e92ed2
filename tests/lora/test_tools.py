"""Merge and resize: equalities on random adapters of the size of the demo bases, and singular values as numpy finds them."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from studio.errors import FormatError
from studio.families.base import Components
from studio.lora import formats
from studio.lora.adapter import Adapter, Decomposed, Difference, Hadamard, LowRank
from studio.lora.tools import Made, factors
from studio.lora.tools.merge import merge
from studio.lora.tools.resize import resize
from tests.generation.conftest import adapter

PARTS = (".attn", "resnets", "text_model.encoder")  # linear layers, convolutions, text encoders


def result(steps: Generator[Any, None, Any]) -> Any:
    """What a tool returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def off(layer: Any, expected: torch.Tensor) -> float:
    """Relative Frobenius distance."""
    return float((layer.delta().double() - expected.double()).norm() / expected.double().norm())


def summed(rows: list[tuple[str, Adapter, float]]) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    for _, one, weight in rows:
        for path, layer in one.layers.items():
            total[path] = total.get(path, torch.zeros(())) + weight * layer.delta().double()  # type: ignore[call-arg]
    return total


@pytest.fixture(scope="module", params=["sdxl", "flux"])
def rows(request: pytest.FixtureRequest) -> list[tuple[str, Adapter, float]]:
    """Three adapters of different ranks and alphas, the last on every second layer, one with a negative weight."""
    c: Components = request.getfixturevalue(request.param)
    return [
        ("one", adapter(c, 1, PARTS, rank=4), 0.8),
        ("two", adapter(c, 2, PARTS, rank=7, size=0.1), -0.5),
        ("three", adapter(c, 3, PARTS, rank=2, every=2), 1.5),
    ]


def test_a_merge_is_the_sum_of_its_parts(rows: list[tuple[str, Adapter, float]]) -> None:
    made: Made = result(merge(rows, "sum"))
    expected = summed(rows)
    assert made.adapter.layers.keys() == expected.keys()
    assert max(off(made.adapter.layers[path], delta) for path, delta in expected.items()) < 1e-5
    assert {layer.rank for layer in made.adapter.layers.values()} == {11, 13}, "ranks add up, layers that only some have keep theirs"
    assert made.report["residual"] == 0 and not made.notes


def test_the_order_of_a_merge_makes_no_difference(rows: list[tuple[str, Adapter, float]]) -> None:
    one, other = result(merge(rows, "sum")).adapter, result(merge(rows[::-1], "sum")).adapter
    assert max(formats.difference(one.layers[path], other.layers[path]) for path in one.layers) < 1e-6
    assert max(off(other.layers[path], delta) for path, delta in summed(rows).items()) < 1e-5


def test_merging_to_a_rank_loses_what_numpy_says(rows: list[tuple[str, Adapter, float]]) -> None:
    made: Made = result(merge(rows, "sum", "svd", 5))
    away = whole = 0.0
    for path, delta in summed(rows).items():
        matrix = delta.flatten(1).numpy()
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
        best = (u[:, :5] * s[:5]) @ v[:5]
        assert off(made.adapter.layers[path], torch.from_numpy(best).reshape(delta.shape)) < 1e-5
        told = made.report["layers"][path]
        assert told == {"rank": 5, "residual": pytest.approx(float(np.sqrt((s[5:] ** 2).sum() / (s**2).sum())), abs=1e-7)}
        away, whole = away + float((s[5:] ** 2).sum()), whole + float((s**2).sum())
    assert made.report["residual"] == pytest.approx((away / whole) ** 0.5, abs=1e-7)


def test_ranks_never_exceed_what_a_layer_can_have() -> None:
    draw = torch.Generator().manual_seed(0)
    layers = [{"unet.conv_in": LowRank(torch.randn(5, 4, generator=draw), torch.randn(8, 5, generator=draw), 2.0)} for _ in range(3)]
    rows = [(str(i), Adapter("sdxl", one), 0.5 + i) for i, one in enumerate(layers)]
    layer = result(merge(rows, "sum")).adapter.layers["unet.conv_in"]
    assert layer.rank == 4 and off(layer, summed(rows)["unet.conv_in"]) < 1e-6


def test_other_kinds_of_layers_are_added_up_whole_or_cut() -> None:
    draw = torch.Generator().manual_seed(0)
    hadamard = Hadamard(*(torch.randn(*shape, generator=draw) for shape in ((8, 3), (3, 6), (8, 3), (3, 6))), alpha=1.5)  # type: ignore[misc]
    plain = LowRank(torch.randn(2, 6, generator=draw), torch.randn(8, 2, generator=draw), 2.0)
    bias = Difference(torch.randn(8, generator=draw))
    rows = [("a", Adapter("flux", {"m": hadamard, "m.bias": bias}), 0.7), ("b", Adapter("flux", {"m": plain}), -1.0)]
    made = result(merge(rows, "sum"))
    assert isinstance(made.adapter.layers["m"], Difference) and "kept whole" in made.notes[0]
    assert all(off(made.adapter.layers[path], delta) < 1e-6 for path, delta in summed(rows).items())
    cut = result(merge(rows, "sum", "svd", 3)).adapter.layers
    assert cut["m"].rank == 3 and torch.equal(cut["m.bias"].delta(), 0.7 * bias.weight)


def test_what_cannot_be_merged_is_refused_in_one_line() -> None:
    one = LowRank(torch.ones(1, 4), torch.ones(4, 1), 1.0)
    with pytest.raises(FormatError, match=r"^a is a LoRA for Stable Diffusion XL, b for FLUX.1; only LoRAs for the same kind of base can be merged$"):
        result(merge([("a", Adapter("sdxl", {"m": one}), 1), ("b", Adapter("flux", {"m": one}), 1)], "sum"))
    with pytest.raises(FormatError, match="bases of different sizes"):
        result(merge([("a", Adapter("sdxl", {"m": one}), 1), ("b", Adapter("sdxl", {"m": LowRank(torch.ones(1, 8), torch.ones(4, 1), 1.0)}), 1)], "sum"))
    with pytest.raises(FormatError, match="DoRA"):
        result(merge([("a", Adapter("sdxl", {"m": Decomposed(one, torch.ones(4))}), 1)], "sum"))
    with pytest.raises(FormatError, match="every weight is 0"):
        result(merge([("a", Adapter("sdxl", {"m": one}), 0)], "sum"))


def test_resizing_keeps_the_best_part_and_says_what_was_lost(rows: list[tuple[str, Adapter, float]]) -> None:
    whole = result(merge(rows, "sum")).adapter
    before = 0.0
    for rank in (13, 8, 4, 1):
        made: Made = result(resize(whole, "small", rank=rank))
        assert max(layer.rank for layer in made.adapter.layers.values()) == rank
        for path, layer in made.adapter.layers.items():
            measured = off(layer, whole.layers[path].delta().double())  # type: ignore[call-arg]
            assert measured == pytest.approx(made.report["layers"][path]["residual"], abs=1e-5)
        assert made.report["residual"] >= before, "a smaller rank cannot lose less"
        before = made.report["residual"]
    assert 0 < before < 1


def test_resizing_by_energy_keeps_that_share_with_the_smallest_rank(rows: list[tuple[str, Adapter, float]]) -> None:
    whole = result(merge(rows, "sum")).adapter
    ranks = []
    for energy in (0.5, 0.9, 0.99, 1.0):
        made: Made = result(resize(whole, "small", energy=energy))
        for path, layer in made.adapter.layers.items():
            s = torch.linalg.svdvals(whole.layers[path].delta().double().flatten(1))  # type: ignore[call-arg]
            share = s.square().cumsum(0) / s.square().sum()
            assert share[layer.rank - 1] >= energy - 1e-9
            assert layer.rank == 1 or share[layer.rank - 2] < energy
            assert made.report["layers"][path]["residual"] <= (1 - energy + 1e-9) ** 0.5
        ranks.append(sum(layer.rank for layer in made.adapter.layers.values()))
    assert ranks == sorted(ranks) and ranks[0] < ranks[-1]
    assert max(formats.difference(whole.layers[path], layer) for path, layer in made.adapter.layers.items()) < 1e-6


def test_random_projections_find_what_an_exact_decomposition_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    delta = torch.randn(300, 6, generator=draw) @ torch.randn(6, 400, generator=draw) + 0.01 * torch.randn(300, 400, generator=draw)
    exact = factors.of_matrix(delta, 6)
    monkeypatch.setattr(factors, "EXACT_SIDE", 64)
    quick = factors.of_matrix(delta, 6)
    assert len(quick.s) == 6 + factors.OVERSAMPLING < len(exact.s), "the quick way was taken"
    assert torch.allclose(quick.s[:6], exact.s[:6], rtol=1e-5)
    assert quick.lost(6) == pytest.approx(exact.lost(6), rel=1e-3)
    assert off(quick.cut(6), delta) == pytest.approx((quick.lost(6) / quick.energy) ** 0.5, rel=1e-3)


def test_a_merged_file_says_what_it_was_made_of(rows: list[tuple[str, Adapter, float]], tmp_path: Path) -> None:
    made: Made = result(merge(rows, "my mix"))
    formats.write(made.adapter, tmp_path / "mix.safetensors", dtype="fp32", metadata=made.adapter.metadata)
    assert formats.verify(tmp_path / "mix.safetensors", made.adapter)["worst_difference"] < 1e-6
    words = formats.read(tmp_path / "mix.safetensors").metadata
    assert words["modelspec.title"] == "my mix" and words["modelspec.merged_from"] == "random-1, random-2, random-3"
    assert words["ss_output_name"] == "my-mix" and words["ss_network_dim"] == "Dynamic" and words["ss_base_model_version"]
