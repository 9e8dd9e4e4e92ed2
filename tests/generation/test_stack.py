import hashlib
import random
from dataclasses import replace

import pytest
import torch

from studio.errors import FormatError
from studio.families.base import Components
from studio.generation import baked
from studio.generation.stack import Stack
from studio.lora.adapter import Adapter, Decomposed, Difference, LowRank, delta
from studio.lora.attach import module_map
from tests.generation.conftest import adapter


@pytest.fixture
def stack(c: Components):
    made = Stack(c)
    yield made
    made.clear()


def weights(c: Components) -> dict[str, torch.Tensor]:
    return {path: module.weight.detach().clone() for path, module in module_map(c).items()}  # type: ignore[operator, union-attr]


def fingerprint(c: Components) -> str:
    """Hash of every tensor of the denoiser and the text encoders."""
    digest = hashlib.sha256()
    for part in (c.facts.denoiser, *c.facts.text_encoders):
        for name, tensor in sorted(c.parts[part].state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def halved(c: Components, dtype: torch.dtype) -> Components:
    """The denoiser alone, in another number format."""
    import copy

    return replace(c, parts={c.facts.denoiser: copy.deepcopy(c.denoiser).to(dtype)}, dtype=dtype, warm={})


def test_the_stack_is_the_base_plus_the_weighted_sum_of_deltas(c: Components, stack: Stack) -> None:
    before = weights(c)
    rows = [(adapter(c, 1), 0.8), (adapter(c, 2, (".attn", "to_out", "conv1", "text_model.encoder")), -0.35)]
    stack.set(rows)
    changed = 0
    for path, weight in weights(c).items():
        expected = before[path].clone()
        for one, strength in rows:
            if path in one.layers:
                expected += strength * delta(one.layers[path], before[path])
        assert torch.allclose(weight, expected, rtol=1e-6, atol=1e-6), path
        changed += not torch.equal(weight, before[path])
    assert changed == len({path for one, _ in rows for path in one.layers})


def test_full_differences_are_added_too(c: Components, stack: Stack) -> None:
    path = next(path for path in module_map(c) if path.endswith("to_q"))
    before = weights(c)[path]
    change = torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    stack.set([(Adapter(c.facts.name, {path: Difference(change)}), 0.5)])
    assert torch.allclose(weights(c)[path], before + 0.5 * change, atol=1e-6)


def test_a_difference_that_depends_on_the_base_takes_its_own_tensor(c: Components, stack: Stack) -> None:
    """DoRA on top of another adapter, and again at another weight: its delta is that of the base, not of what the stack made of it."""
    before = weights(c)
    plain = adapter(c, 1)
    path = next(path for path in plain.layers if path.endswith("to_q"))
    layer = adapter(c, 2).layers[path]
    assert isinstance(layer, LowRank)
    decomposed = Decomposed(layer, before[path].flatten(1).norm(dim=1) * 1.5)
    for weight in (1.0, 0.4):
        stack.set([(plain, 0.7), (Adapter(c.facts.name, {path: decomposed}), weight)])
        expected = before[path] + 0.7 * delta(plain.layers[path], before[path]) + weight * decomposed.delta(before[path])
        assert torch.allclose(weights(c)[path], expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_order_changes_no_bit_and_half_precision_rounds_once(c: Components, dtype: torch.dtype) -> None:
    own = halved(c, dtype)
    before = weights(own)
    rows = [(adapter(own, seed), weight) for seed, weight in ((1, 0.7), (2, -0.3), (3, 1.1), (4, 0.05))]
    stack = Stack(own)
    seen = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
        stack.clear()
        stack.set([rows[i] for i in order])
        seen.append(weights(own))
    assert all(torch.equal(seen[0][path], other[path]) for other in seen[1:] for path in seen[0])
    for path in rows[0][0].layers:
        exact = before[path].double() + sum(weight * delta(one.layers[path], before[path]).double() for one, weight in rows)
        half_step = 0.5 * exact.abs() * torch.finfo(dtype).eps + 2e-6
        assert ((seen[0][path].double() - exact).abs() <= half_step).all(), path


def test_the_bits_of_a_layer_do_not_depend_on_what_is_baked_with_it(c: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers at once, some of them later than others, and in small groups."""
    own = halved(c, torch.bfloat16)
    rows = [(adapter(own, 1, (".attn", ".ff", "conv1", "proj")), 0.7), (adapter(own, 2, every=3), -0.3), (adapter(own, 3, every=2), 0.2)]
    before = weights(own)
    stack = Stack(own)
    n = stack.set(rows).baked
    together = weights(own)
    assert sum(not torch.equal(weight, before[path]) for path, weight in together.items()) == n
    for first in (rows[:1], rows[1:], [(rows[0][0], 0.1), *rows[1:]]):
        stack.clear()
        stack.set(first)
        stack.set(rows)
        assert all(torch.equal(weight, together[path]) for path, weight in weights(own).items())
    stack.clear()
    monkeypatch.setattr(baked, "AT_ONCE_BYTES", 3 * 4 * 64 * 64)
    stack.set(rows)
    assert all(torch.equal(weight, together[path]) for path, weight in weights(own).items())


def test_equal_numbers_count_as_one_adapter_wherever_they_came_from(c: Components, stack: Stack) -> None:
    one, twin = adapter(c, 5), adapter(c, 5)
    stack.set([(one, 0.75), (twin, -0.25)])
    together = weights(c)
    stack.clear()
    stack.set([(twin, 0.5)])
    again = weights(c)
    assert all(torch.equal(together[path], again[path]) for path in together)


@pytest.mark.parametrize("n", [50, pytest.param(1000, marks=pytest.mark.long)])
def test_the_base_is_the_same_bit_for_bit_after_many_changes(c: Components, n: int) -> None:
    """Changes of every kind in both modes, some of which fail midway."""
    before = fingerprint(c)
    own = {path: module.weight.data_ptr() for path, module in module_map(c).items()}  # type: ignore[operator, union-attr]
    stack = Stack(c)
    pool = [adapter(c, seed, words, every=every) for seed, words, every in ((1, (".attn",), 1), (2, (".ff",), 2), (3, ("text_model", ".attn"), 3))]
    last = list(pool[0].layers)[-1]
    layer = pool[0].layers[last]
    assert isinstance(layer, LowRank)
    nowhere = Adapter(c.facts.name, {f"{c.facts.denoiser}.nowhere": layer})
    infinite = Adapter(c.facts.name, {**pool[0].layers, last: LowRank(layer.down, torch.full_like(layer.up, 3e38), 4 * layer.rank)})
    draw = random.Random(0)
    failed = 0
    for _ in range(n):
        mode = draw.choice(["auto", "baked", "live"])
        rows = [(one, draw.choice([0.0, 0.3, 1.0, -2.0])) for one in draw.sample(pool, draw.randint(0, 3))]
        if draw.random() < 0.2:
            with pytest.raises(FormatError):
                stack.set([*rows, (draw.choice([nowhere, infinite]), 1.0)], mode=mode)  # type: ignore[arg-type]
            failed += 1
            assert failed % 10 or fingerprint(c) == before
        else:
            stack.set(rows, mode=mode)  # type: ignore[arg-type]
    stack.set([(pool[0], 1.0)], mode="baked")
    assert fingerprint(c) != before and failed
    stack.set([])
    assert fingerprint(c) == before
    assert own == {path: module.weight.data_ptr() for path, module in module_map(c).items()}, "the very tensors of the base are back"  # type: ignore[operator, union-attr]


def test_weight_0_is_the_same_as_leaving_the_row_out(c: Components, stack: Stack) -> None:
    one, other = adapter(c, 1), adapter(c, 2)
    stack.set([(one, 0.4)])
    alone, word = weights(c), stack.fingerprint()
    found = stack.set([(other, 0.0), (one, 0.4), (other, 0.5), (other, -0.5)])
    assert found.baked == 0 and stack.fingerprint() == word
    now = weights(c)
    assert all(torch.equal(alone[path], now[path]) for path in alone)
    assert stack.set([(one, 0.0)]).rows == (None,)
    assert stack.fingerprint() == ""


def test_only_layers_whose_sum_changes_are_computed(c: Components, stack: Stack) -> None:
    attention, rest = adapter(c, 1, (".attn",)), adapter(c, 2, (".ff.",))
    n, m = len(attention.layers), len(rest.layers)
    assert n and m and not set(attention.layers) & set(rest.layers)
    assert stack.set([(attention, 1.0), (rest, 1.0)]).baked == n + m
    assert stack.set([(attention, 1.0), (rest, 0.5)]).baked == m
    assert stack.set([(rest, 0.5), (attention, 1.0)]).baked == 0
    assert stack.set([(rest, 0.5)]).baked == n


def test_fingerprints_tell_what_reaches_the_text_encoders(c: Components, stack: Stack) -> None:
    image, text = adapter(c, 1), adapter(c, 2, ("text_model",))
    stack.set([(image, 1.0)])
    assert stack.fingerprint() and not stack.fingerprint(c.facts.text_encoders)
    stack.set([(image, 0.5), (text, 1.0)])
    first = stack.fingerprint(c.facts.text_encoders)
    stack.set([(image, 0.6), (text, 1.0)])
    assert stack.fingerprint(c.facts.text_encoders) == first
    stack.set([(image, 0.6), (text, 0.9)])
    assert stack.fingerprint(c.facts.text_encoders) not in ("", first)


def test_an_adapter_of_another_family_is_refused_by_name(c: Components, stack: Stack, loaded) -> None:
    other = loaded("demo-flux" if c.base.name == "demo-sdxl" else "demo-sdxl")
    with pytest.raises(FormatError) as caught:
        stack.set([(adapter(other, 1), 1.0)], ["ink"])
    text = str(caught.value)
    assert "ink" in text and c.facts.title in text and other.facts.title in text and "\n" not in text
    stack.set([(adapter(other, 1), 0.0)], ["ink"])  # switched off, it is in nobody's way


def test_an_adapter_that_fits_nowhere_is_refused(c: Components, stack: Stack) -> None:
    before = fingerprint(c)
    wrong = LowRank(torch.ones(2, 7), torch.ones(9, 2), 2)
    path = next(path for path in module_map(c) if path.endswith("to_q"))
    for layers in ({path: wrong}, {f"{c.facts.denoiser}.nowhere": wrong}, {}):
        with pytest.raises(FormatError, match="LoRA ink") as caught:
            stack.set([(adapter(c, 1), 1.0), (Adapter(c.facts.name, layers), 1.0)], ["fine", "ink"])
        assert "\n" not in str(caught.value)
        assert fingerprint(c) == before


def test_what_fits_in_part_is_reported_and_the_rest_left_out(c: Components, stack: Stack) -> None:
    good = adapter(c, 1)
    first = next(iter(good.layers))
    layers = {**good.layers, f"{c.facts.denoiser}.nowhere": good.layers[first], first: LowRank(torch.ones(2, 7), torch.ones(9, 2), 2)}
    found = stack.set([(Adapter(c.facts.name, layers), 1.0), (adapter(c, 2), 1.0)], ["ink", "fine"])
    report = found.rows[0]
    assert report and len(report.matched) == len(good.layers) - 1 and len(report.missing) == len(report.mismatched) == 1
    assert len(found.warnings) == 1 and "ink: 2 of" in found.warnings[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_numbers_beyond_the_format_are_refused_and_the_base_given_back(c: Components, stack: Stack, value: float) -> None:
    before = fingerprint(c)
    good = adapter(c, 1)
    last = list(good.layers)[-1]
    layer = good.layers[last]
    assert isinstance(layer, LowRank)
    broken = Adapter(c.facts.name, {**good.layers, last: LowRank(layer.down, torch.full_like(layer.up, value), 4 * layer.rank)})
    with pytest.raises(FormatError, match="beyond"):
        stack.set([(broken, 1.0)], ["ink"])
    assert fingerprint(c) == before
