"""The stack beside the weights: side paths give what the dense sum gives, whatever moves, and leave no trace."""

import copy
import hashlib
from dataclasses import replace

import pytest
import torch

from studio import families
from studio.config import LoraWeight
from studio.errors import SettingsError
from studio.families.base import Components
from studio.generation.stack import Rows, Stack
from studio.generation.strengths import Strength, at, on_path
from studio.lora.adapter import Adapter, Decomposed, Difference, Hadamard, Kronecker, Layer, LowRank, delta
from studio.lora.attach import module_map
from studio.lora.products import low_rank, whole
from tests.generation.conftest import adapter

_pristine: dict[str, torch.nn.Module] = {}
KINDS = ("low-rank", "hadamard", "kronecker", "difference", "dora", "dora-input")


@pytest.fixture
def stack(c: Components):
    if c.base.name not in _pristine:
        _pristine[c.base.name] = copy.deepcopy(c.denoiser)
    made = Stack(c)
    yield made
    made.clear()


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.2


def layer(kind: str, weight: torch.Tensor, seed: int = 0) -> Layer:
    """A layer of this kind for a weight (out, in[, k, k])."""
    shape, columns = tuple(weight.shape), weight[0].numel()
    plain = LowRank(rand(2, *shape[1:], seed=seed), rand(shape[0], 2, *[1] * (len(shape) - 2), seed=seed + 1), 1.5)
    if kind == "hadamard":
        sides = ((shape[0], 2), (2, columns), (shape[0], 2), (2, columns))
        return Hadamard(*(rand(*side, seed=seed + i) for i, side in enumerate(sides)), 1.5, shape[2:])
    if kind == "kronecker":
        o, i = shape[0] // 2, columns // 2
        return Kronecker((rand(2, 2, seed=seed),), (rand(o, 2, seed=seed + 1), rand(2, i, seed=seed + 2)), 1.5, shape[2:])
    if kind == "difference":
        return Difference(rand(*shape, seed=seed))
    if kind == "dora":
        return Decomposed(plain, weight.flatten(1).norm(dim=1) * 1.3)
    if kind == "dora-input":
        return Decomposed(plain, weight.transpose(0, 1).flatten(1).norm(dim=1) * 0.8, "input")
    return plain


def of_kind(c: Components, kind: str, seed: int, words: tuple[str, ...] = (".attn", "conv1", "proj_mlp"), every: int = 3) -> Adapter:
    weights = {path: module.weight for path, module in module_map(c).items() if path.startswith(c.facts.denoiser)}
    paths = [path for path, weight in weights.items() if weight.dim() in (2, 4) and any(word in path for word in words)][::every]
    return Adapter(c.facts.name, {path: layer(kind, weights[path].detach(), seed + n) for n, path in enumerate(paths)}, {"ss_output_name": kind})  # type: ignore[union-attr]


def look(c: Components, images: int = 1, only: int | None = None) -> torch.Tensor:
    """What the denoiser says of fixed noise, both halves of a guided batch; `only` gives one image of the batch alone."""
    family = families.get(c.facts.name)
    side = 64 // 8
    channels = c.parts["vae"].config.latent_channels
    noisy = (rand(images, channels, side, side, seed=7) * 5).to(c.device)
    words = family.encode_captions(c, [f"cat number {i}" for i in range(images)])
    if only is not None:
        noisy, words, images = noisy[only : only + 1], {key: value[only : only + 1] for key, value in words.items()}, 1
    both = {key: torch.cat([torch.zeros_like(value), value]) for key, value in words.items()}
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]], device=c.device).expand(2 * images, -1)
    with torch.no_grad():
        return family.predict(c, torch.cat([noisy, noisy]), torch.full((2 * images,), 500.0, device=c.device), both, sizes).clone()


def dense(c: Components, rows: Rows, position: float = 0.0) -> torch.Tensor:
    """The same look with the weighted sum of deltas written into a copy of the base's denoiser."""
    changed = replace(c, parts={**c.parts, c.facts.denoiser: copy.deepcopy(_pristine[c.base.name])}, warm={})
    for path, module in module_map(changed).items():
        own = module.weight.detach().clone()  # type: ignore[operator, union-attr]
        total = own.clone()
        for one, strength in rows:
            row = strength if isinstance(strength, LoraWeight) else LoraWeight(name="x", weight=strength)
            if path in one.layers:
                total += on_path(row, path, c.facts) * at(row.schedule, position) * delta(one.layers[path], own)
        with torch.no_grad():
            module.weight.copy_(total)  # type: ignore[operator, union-attr]
    return look(changed)


def near(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


def fingerprint(c: Components) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(c.denoiser.state_dict().items()):
        digest.update(name.encode() + tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["baked", "live"])
def test_every_kind_acts_as_its_dense_sum_in_both_modes(c: Components, stack: Stack, kind: str, mode) -> None:
    rows: Rows = [(of_kind(c, kind, 1), 0.7), (adapter(c, 2), -0.4)]
    base = look(c)
    expected = dense(c, rows)
    found = stack.set(rows, mode=mode)
    assert found.mode == mode and near(look(c), expected) and not near(expected, base, 1e-2)
    if mode == "live" and kind in ("difference", "dora", "dora-input"):
        assert "no short form" in found.reason and found.baked
    stack.set([])
    assert torch.equal(look(c), base)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_follows_a_schedule(c: Components, stack: Stack, kind: str) -> None:
    row = LoraWeight.parse("moving=0.8,curve=1@0/0.25@0.5/0@1")
    rows: Rows = [(of_kind(c, kind, 1, every=7), row), (adapter(c, 2, every=2), 0.5)]
    found = stack.set(rows)
    assert found.live and found.reason == "strengths move over the steps"
    for position in (0.0, 0.25, 1.0):
        stack.at(position)
        assert near(look(c), dense(c, rows, position)), position


def test_live_leaves_the_weights_alone_and_goes_without_a_trace(c: Components, stack: Stack) -> None:
    before, base = fingerprint(c), look(c)
    kinds = {name: type(module) for name, module in c.denoiser.named_modules()}
    for rows in ([(adapter(c, 1), 1.0)], [(adapter(c, 1), 0.2), (adapter(c, 2, (".ff",)), -1.0)]):
        stack.set(rows, mode="live")
        assert fingerprint(c) == before and not torch.equal(look(c), base)
    stack.set([(adapter(c, 1), 0.0)], mode="live")
    assert torch.equal(look(c), base) and {name: type(module) for name, module in c.denoiser.named_modules()} == kinds


def test_order_changes_no_bit_in_live_either(c: Components, stack: Stack) -> None:
    rows = [(adapter(c, seed), weight) for seed, weight in ((1, 0.7), (2, -0.3), (3, 1.1))]
    seen = []
    for order in ([0, 1, 2], [2, 0, 1]):
        stack.clear()
        stack.set([rows[i] for i in order], mode="live")
        seen.append(look(c))
    assert torch.equal(*seen)


def test_a_level_schedule_is_no_schedule(c: Components, stack: Stack) -> None:
    one = adapter(c, 1, (".attn", "text_model"))
    stack.set([(one, 0.8)])
    plain, word, spoken = look(c), stack.fingerprint(), stack.fingerprint(c.facts.text_encoders)
    assert stack.set([(one, LoraWeight.parse("x=0.8,curve=1@0/1@0.5/1@1"))]).baked == 0
    assert torch.equal(look(c), plain) and stack.fingerprint() == word and stack.fingerprint(c.facts.text_encoders) == spoken


def test_blocks_have_strengths_of_their_own(c: Components, stack: Stack) -> None:
    block = "input=0,output.1=0.25,output=0.5" if c.facts.denoiser == "unet" else "double=0,single.0=0.25,single=0.5"
    one = adapter(c, 1)
    row = LoraWeight.parse(f"x=0.9,{block}")
    expected = dense(c, [(one, row)])
    for mode in ("baked", "live"):
        stack.set([(one, row)], mode=mode)
        assert near(look(c), expected) and not near(look(c), dense(c, [(one, 0.9)]), 1e-2)


def test_text_encoders_have_a_strength_of_their_own(c: Components, stack: Stack) -> None:
    one = adapter(c, 1, (".attn", "text_model"))
    own = {path: module.weight.detach().clone() for path, module in module_map(c).items()}  # type: ignore[operator, union-attr]
    stack.set([(one, LoraWeight.parse("x=0.5,text=-0.25"))])
    for path, module in module_map(c).items():
        weight = -0.25 if "text_model" in path else 0.5
        expected = own[path] + (weight * delta(one.layers[path], own[path]) if path in one.layers else 0)
        assert torch.allclose(module.weight, expected, atol=1e-6), path  # type: ignore[arg-type]


def test_two_stacks_in_one_batch_equal_two_single_runs(c: Components, stack: Stack) -> None:
    first: list[tuple[Adapter, Strength]] = [(adapter(c, 1), 0.8)]
    second: list[tuple[Adapter, Strength]] = [(adapter(c, 2, (".attn", ".ff")), -0.5), (adapter(c, 3), LoraWeight.parse("x=1,curve=0@0/1@1"))]
    alone = []
    for image, rows in enumerate((first, second)):
        stack.set(rows)
        stack.at(0.5)
        alone.append(look(c, 2, only=image))
    found = stack.set_each([first, second], [["a"], ["b", "c"]])
    assert "different stacks" in found.reason
    stack.at(0.5)
    together = look(c, 2)
    for image in range(2):
        assert torch.allclose(together[[image, image + 2]], alone[image], atol=1e-5), image


def test_each_prompt_of_a_batch_is_spoken_under_its_own_stack(c: Components, stack: Stack) -> None:
    rows = [[(adapter(c, seed, ("text_model",)), 1.0)] for seed in (1, 2)]
    alone = []
    for row in rows:
        stack.set(row)
        alone.append((stack.fingerprint(c.facts.text_encoders), families.get(c.facts.name).encode_captions(c, ["cat"])))
    stack.set_each(rows, [["a"], ["b"]])
    for image, (word, spoken) in enumerate(alone):
        stack.speak(image)
        found = families.get(c.facts.name).encode_captions(c, ["cat"])
        assert stack.fingerprint(c.facts.text_encoders, image) == word and all(torch.equal(found[key], spoken[key]) for key in spoken)


def test_a_slider_moves_numbers_and_nothing_else(c: Components, stack: Stack) -> None:
    """What a captured graph relies on: as long as `layout` stays, every buffer lies where it lay."""
    rows = [adapter(c, seed) for seed in (1, 2)]
    stack.set([(rows[0], 0.5), (rows[1], 0.5)], mode="live")
    layout, sides = stack.layout, {name: module._side for name, module in c.denoiser.named_modules() if hasattr(module, "_side")}
    places = {name: (side.down.data_ptr(), side.up.data_ptr()) for name, side in sides.items()}  # type: ignore[union-attr]
    for change in ([(rows[0], 0.1), (rows[1], -2.0)], [(rows[1], 1.0)], [(adapter(c, 9), 0.3)]):
        stack.set(change, mode="live")  # type: ignore[arg-type]
        assert stack.layout == layout and near(look(c), dense(c, change))  # type: ignore[arg-type]
        assert {
            name: (module._side.down.data_ptr(), module._side.up.data_ptr()) for name, module in c.denoiser.named_modules() if hasattr(module, "_side")
        } == places  # type: ignore[union-attr]
    stack.set([], mode="live")
    assert stack.layout == ""
    stack.set([(rows[0], 1.0)], mode="live")
    assert stack.layout == layout
    stack.set([(adapter(c, 5, rank=40), 1.0)], mode="live")
    assert stack.layout != layout, "wider factors need other buffers"


def test_baked_asked_for_refuses_what_moves(c: Components, stack: Stack) -> None:
    before = fingerprint(c)
    with pytest.raises(SettingsError, match="stack_mode baked: strengths move over the steps"):
        stack.set([(adapter(c, 1), LoraWeight.parse("x=1,curve=1@0/0@1"))], mode="baked")
    norm = next(path for path, module in module_map(c).items() if path.startswith(c.facts.denoiser) and module.weight.dim() == 1)  # type: ignore[operator, union-attr]
    shape = module_map(c)[norm].weight.shape  # type: ignore[union-attr]
    with pytest.raises(SettingsError, match="bias or a norm, which can only be baked"):
        stack.set([(Adapter(c.facts.name, {norm: Difference(rand(*shape))}), LoraWeight.parse("x=1,curve=1@0/0@1"))])  # type: ignore[misc]
    with pytest.raises(SettingsError, match="has no blocks 'nowhere'"):
        stack.set([(adapter(c, 1), LoraWeight.parse("x=1,nowhere=0"))])
    assert fingerprint(c) == before


@pytest.mark.parametrize("shape", [(32, 48), (32, 24, 3, 3), (48, 32, 1, 1)])
@pytest.mark.parametrize("kind", ["low-rank", "hadamard", "kronecker"])
def test_short_products_are_the_deltas(kind: str, shape: tuple[int, ...]) -> None:
    one = layer(kind, rand(*shape, seed=4))
    found = low_rank(one)
    assert found is not None and found[0].shape[1] == found[1].shape[0] <= 16
    assert torch.allclose((found[0] @ found[1]).reshape(shape), one.delta(), atol=1e-6)  # type: ignore[union-attr, call-arg]
    up, down = whole(one.delta())  # type: ignore[union-attr, call-arg]
    assert torch.equal((up @ down).reshape(shape), one.delta())  # type: ignore[union-attr, call-arg]


def test_a_part_of_a_fused_kronecker_layer_and_a_wide_one() -> None:
    part = Kronecker((rand(4, 4),), (rand(8, 2, seed=1), rand(2, 8, seed=2)), 1.0, rows=(8, 24))
    found = low_rank(part)
    assert found is not None and torch.allclose(found[0] @ found[1], part.delta(), atol=1e-6)
    assert low_rank(Kronecker((rand(4, 4),), (rand(8, 8),), 1.0)) is None, "as wide as the matrix: no side path is cheaper"


def test_layers_of_one_input_take_its_products_together(c: Components, stack: Stack) -> None:
    """One product with all factors a group and look; nothing of a look stays behind."""
    stack.set([(adapter(c, 1), 0.8), (adapter(c, 2), LoraWeight.parse("x=1,curve=1@0/0@1"))])
    sides = {name: module._side for name, module in c.denoiser.named_modules() if hasattr(module, "_side")}
    groups = {side.group: None for side in sides.values()}  # type: ignore[union-attr]
    if c.facts.denoiser == "unet":
        text = {name for name in sides if name.endswith(("attn2.to_k", "attn2.to_v"))}
        assert len({sides[name].group for name in text}) == 1 and len(text) == sum(len(group.sides) for group in groups if len(group.sides) > 3)  # type: ignore[union-attr]
        assert all(sides[name].group is sides[name.replace("to_q", "to_k")].group for name in sides if name.endswith("attn1.to_q"))  # type: ignore[union-attr]
    taken: list[object] = []
    for group in groups:
        plain = group._take  # type: ignore[union-attr]
        group._take = lambda x, plain=plain, group=group: (taken.append(group), plain(x))[1]  # type: ignore[union-attr, method-assign]
    found = look(c)
    assert sorted(map(id, taken)) == sorted(id(group) for group in groups if len(group.sides) > 1)  # type: ignore[union-attr]
    assert all(group._x is None and not group._added for group in groups)  # type: ignore[union-attr]
    for group in groups:
        group.products = lambda side, x, group=group: (group._narrow(x, side.down, side.strengths), None)  # type: ignore[union-attr, method-assign]
    assert near(found, look(c), 1e-5), "as every layer alone"


def test_a_look_that_ended_midway_leaves_nothing_for_the_next(c: Components, stack: Stack) -> None:
    rows: Rows = [(adapter(c, 1), LoraWeight.parse("x=1,curve=1@0/0.2@1"))]
    stack.set(rows)
    last = [module for module in c.denoiser.modules() if hasattr(module, "_side")][-1]
    hook = last.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        look(c)
    hook.remove()
    stack.at(1.0)
    assert near(look(c), dense(c, rows, 1.0))


def test_a_layer_of_a_group_that_sees_another_input_goes_alone() -> None:
    from studio.generation.live import Live, Share

    modules = {name: torch.nn.Linear(16, width, bias=bias) for name, width, bias in (("a", 24, False), ("b", 24, False), ("c", 24, True), ("d", 8, False))}
    factors = {name: (rand(module.out_features, 3, seed=width), rand(3, 16, seed=width + 1)) for width, (name, module) in enumerate(modules.items())}
    live = Live(modules, lambda _: (torch.device("cpu"), torch.float32), lambda _: "one")
    live.set({name: (Share("key", (0.5,)),) for name in modules}, 1, lambda _, path: factors[path])
    expected = {name: module.weight + 0.5 * factors[name][0] @ factors[name][1] for name, module in modules.items()}
    bias = modules["c"].bias
    one, other = rand(2, 5, 16, seed=8), rand(3, 16, seed=9)
    with torch.no_grad():
        for x in (one, one, other):
            for name, module in modules.items():
                given = other if name == "b" else x
                assert torch.allclose(module(given), given @ expected[name].t() + (bias if name == "c" else 0), atol=1e-6), name
    assert torch.allclose(modules["a"](one), one @ expected["a"].t(), atol=1e-6), "with gradients too"
    live.clear()
