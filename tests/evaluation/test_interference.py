"""The check of a stack from its factors, on adapters whose overlap is known."""

import math

import pytest
import torch

from studio.config import LoraWeight
from studio.evaluation.interference import check
from studio.lora.adapter import Adapter, Decomposed, Difference, LowRank

PATHS = ("unet.down_blocks.1.attentions.0.to_q", "unet.up_blocks.0.attentions.0.to_q", "text_encoder.text_model.encoder.layers.0.mlp.fc1")


def factor(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Orthonormal columns or rows."""
    made = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns), generator=torch.Generator().manual_seed(seed))).Q
    return made if rows >= columns else made.T


def of(*layers: LowRank | Difference | Decomposed, paths: tuple[str, ...] = PATHS) -> Adapter:
    return Adapter("sdxl", dict(zip(paths, layers, strict=False)))


def plain(seed: int = 0, rank: int = 4, inputs: slice = slice(0, 4), outputs: slice = slice(0, 4)) -> LowRank:
    """A layer 32 x 24 whose directions are columns of one fixed basis, so that disjoint slices are orthogonal."""
    up, down = factor(32, 32, seed)[:, outputs], factor(24, 24, seed + 100)[inputs]
    return LowRank(down, up, float(rank))


def test_equal_adapters_overlap_wholly_and_grow_by_the_root_of_their_number() -> None:
    one = of(plain(), plain(1))
    found = check([(one, 1.0), (one, 1.0)], ["ink", "twin"])
    assert found.verdict == "clash" and found.pairs[0].overlap == found.pairs[0].shared == 1
    assert found.growth == pytest.approx(math.sqrt(2), abs=1e-3)
    assert found.suggested == {"ink": 0.7, "twin": 0.7} and "their strengths add up" in found.sentences[0]
    assert found.pairs[0].places == ("input.1", "output.0")
    settled = check([(one, found.suggested["ink"]), (one, found.suggested["twin"])], ["ink", "twin"])
    assert settled.verdict == "watch" and not settled.suggested, "who took the weights that were suggested is not asked to lower them again"
    assert "their strengths add up" in settled.sentences[0]


def test_orthogonal_adapters_have_nothing_in_common() -> None:
    found = check([(of(plain()), 1.0), (of(plain(inputs=slice(4, 8), outputs=slice(4, 8))), 0.8)], ["ink", "wash"])
    assert found.verdict == "fine" and found.pairs[0].overlap == pytest.approx(0, abs=1e-6) and found.pairs[0].shared == pytest.approx(0, abs=1e-6)
    assert found.growth == pytest.approx(1, abs=1e-6) and not found.suggested and "full weight" in found.sentences[0]


def test_opposite_adapters_cancel() -> None:
    found = check([(of(plain()), 1.0), (of(plain()), -0.5)], ["ink", "minus"])
    assert found.verdict == "clash" and found.pairs[0].overlap == -1 and "work against each other" in found.sentences[0]
    assert found.growth == pytest.approx(0.5 / math.sqrt(1.25), abs=1e-4)


def test_the_same_directions_turned_are_seen_without_an_overlap() -> None:
    """Rank 2 in one plane, turned by a quarter: the inner product is 0, the directions are the same."""
    up, down = factor(32, 2, 1), factor(2, 24, 2)
    turned = torch.tensor([[0.0, -1.0], [1.0, 0.0]]) @ down
    found = check([(of(LowRank(down, up, 2.0)), 1.0), (of(LowRank(turned, up, 2.0)), 1.0)], ["ink", "wash"])
    assert found.pairs[0].overlap == pytest.approx(0, abs=1e-6) and found.pairs[0].shared == pytest.approx(1, abs=1e-6)
    assert found.verdict == "watch" and "use the same directions" in found.sentences[0]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_the_overlap_is_the_cosine_of_the_whole_differences(share: float) -> None:
    one, other = plain(3), plain(7)
    mixed = Difference(share * one.delta() + (1 - share) * other.delta())
    found = check([(of(one), 0.7), (of(mixed), 0.4)], ["a", "b"]).pairs[0]
    assert found.overlap == pytest.approx(float(torch.cosine_similarity(one.delta().flatten(), mixed.delta().flatten(), dim=0)), abs=1e-5)


def test_strengths_by_part_and_rows_that_are_off_count() -> None:
    both = of(plain(), plain(1), plain(2))
    silent = LoraWeight.parse("ink=1,text=0,input=0")
    found = check([(both, silent), (both, 1.0), (both, 0.0)], ["ink", "whole", "off"])
    assert [(row.name, row.layers) for row in found.rows] == [("ink", 1), ("whole", 3)]
    assert found.pairs[0].overlap == pytest.approx(1 / math.sqrt(3), abs=1e-5)
    assert check([(both, 1.0)], ["ink"]).sentences == ("One LoRA alone is in nobody's way",)


def test_a_spike_is_named_and_an_even_layer_is_not() -> None:
    up, down = factor(32, 4, 1), factor(4, 24, 2)
    spike = LowRank(down, up * torch.tensor([50.0, 1, 1, 1]), 4.0)
    found = check([(of(plain(), spike, plain(1)), 1.0)], ["ink"])
    assert found.rows[0].spikes == (PATHS[1],) and found.verdict == "watch" and "in one direction" in found.sentences[0]
    assert not check([(of(plain(), LowRank(down, up * 50, 4.0), plain(1)), 1.0)], ["ink"]).rows[0].spikes, "strong, but in every direction"


def test_other_kinds_take_part_and_a_dora_says_what_is_not_known() -> None:
    dora = Decomposed(plain(), torch.ones(32))
    found = check([(of(dora), 1.0), (of(plain()), 1.0)], ["dora", "plain"])
    assert found.pairs[0].overlap == 1 and any("only its directions are compared" in sentence for sentence in found.sentences)
    bias = Adapter("sdxl", {f"{PATHS[0]}.bias": Difference(torch.ones(32))})
    assert check([(bias, 1.0), (bias, 1.0)], ["a", "b"]).pairs[0].overlap == 1
