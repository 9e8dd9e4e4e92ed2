"""Claims about the fast ways to take steps: what they compute is what the plain way computes. Here without recording, which needs a GPU."""

import pytest
import torch

from studio import config as settings
from studio.bench import subjects
from studio.config import TrainConfig
from studio.errors import SettingsError
from studio.lora import attach, fused, scaled
from studio.training import lean as fast
from studio.training import objective
from studio.training.fast import prepare
from studio.training.graph import Engine, filled, tensors
from studio.training.speed import Speed, choose
from studio.training.step import Stepper

from .test_loop import BASES

GRAPH = Speed("graph", "the test asks for it")


class Bench:
    """One base with a fresh adapter, as a run holds it."""

    def __init__(self, base: str, mode: str, **values):
        self.subject = subjects.load(base.removeprefix("demo-"), "demo", torch.float32, torch.device("cpu"))
        c = self.subject.components
        given = {"base": base, "images": "x", "rank": 4, "alpha": 2, "seed": 3, "resolution": 64, "learning_rate": 1e-2, "max_gradient_norm": 0.0}
        self.config = settings.build(TrainConfig, given | values)
        torch.manual_seed(3)
        self.attached = attach.attach(c, self.config)
        c.denoiser.train()
        self.made = prepare(self.attached, GRAPH) if mode != "eager" else None
        goal = objective.choose(c.objective, c.parts["scheduler"].config, c.denoiser.config, self.config)
        self.stepper = Stepper(self.attached, self.subject.family, goal, self.config, self.made.fused if self.made else None)
        self.engine = Engine(self.stepper, record=False) if mode == "engine" else None

    def losses(self, batches: list[list[tuple[int, int]]], rates: list[float]) -> list[float]:
        """Steps over batches of (resolution, number), summed up within a step."""
        found = []
        for n, (step, rate) in enumerate(zip(batches, rates, strict=True)):
            micros = [self.subject.micro(side, 2, 10 * n + number) for side, number in step]
            pictures = 2 * len(micros)
            if self.engine:
                self.engine.accumulate(micros, pictures)
                found.append(self.engine.update(rate).outcome().loss)
            else:
                found.append(self.stepper.update(self.stepper.accumulate(micros, pictures), rate).loss)
        return found

    def weights(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.stepper.weights.exact]


BATCHES = [[(64, 0)], [(64, 1), (64, 2)], [(128, 3)], [(64, 4), (128, 5)]]
RATES = [1e-2, 5e-3, 1e-2, 2e-3]


@pytest.mark.parametrize("base", BASES)
def test_every_way_takes_the_same_steps_over_shapes_and_accumulation(base):
    eager, engine = Bench(base, "eager"), Bench(base, "engine")
    expected = eager.losses(BATCHES, RATES)
    assert engine.losses(BATCHES, RATES) == pytest.approx(expected, rel=1e-4)
    assert len({round(loss, 4) for loss in expected}) == len(expected)
    for ours, theirs in zip(engine.weights(), eager.weights(), strict=True):
        assert (ours - theirs).norm() <= 2e-2 * theirs.norm()  # AdamW's first steps divide by the gradient, however small it is
    assert engine.attached.paths == eager.attached.paths and engine.stepper.weights.names == eager.stepper.weights.names


def test_a_rate_as_a_tensor_and_a_guard_on_the_device_move_the_weights_to_the_same_bits():
    plain, engine = Bench("demo-flux", "fused"), Bench("demo-flux", "engine")
    assert plain.losses(BATCHES, RATES) == engine.losses(BATCHES, RATES)
    for ours, theirs in zip(engine.weights(), plain.weights(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_step_that_is_not_finite_leaves_weights_and_optimizer_alone_to_the_bit():
    bench = Bench("demo-flux", "engine")
    bench.losses([[(64, 0)]], [1e-2])
    before, memory = bench.weights(), [{k: v.clone() for k, v in entry.items()} for entry in bench.stepper.optimizer.state.values()]
    micro = bench.subject.micro(64, 2, 1)
    micro.batch.latents.fill_(float("nan"))
    assert bench.engine
    bench.engine.accumulate([micro], 2)
    outcome = bench.engine.update(1e-2).outcome()
    assert not outcome.applied
    assert all(torch.equal(a, b) for a, b in zip(before, bench.weights(), strict=True))
    for entry, was in zip(bench.stepper.optimizer.state.values(), memory, strict=True):
        assert all(torch.equal(entry[key], was[key]) for key in was)
    # and the next good step is taken as if nothing had been
    other = Bench("demo-flux", "engine")
    other.losses([[(64, 0)]], [1e-2])
    assert bench.losses([[(64, 5)]], [1e-2]) == other.losses([[(64, 5)]], [1e-2])


class Replay:
    """Stands in for a CUDA graph on a CPU: does again what was recorded, and `amiss` more of the loss."""

    def __init__(self, engine: Engine, act, amiss: float):
        self.engine, self.act, self.amiss = engine, act, amiss

    def replay(self) -> None:
        self.act()
        self.engine.total.add_(self.amiss)


def recording(base: str, amiss: float) -> Bench:
    bench = Bench(base, "engine")
    engine = bench.engine
    assert engine

    def capture(act, warm):
        warm()
        return Replay(engine, act, amiss if act != engine._apply else 0.0)

    engine.record, engine._capture = True, capture
    return bench


@pytest.mark.parametrize("base", BASES)
def test_a_recording_is_used_only_if_it_repeats_what_was_recorded(base):
    plain, true, false = Bench(base, "engine"), recording(base, 0.0), recording(base, 0.5)
    expected = plain.losses(BATCHES, RATES)
    assert true.losses(BATCHES, RATES) == expected
    assert true.engine and len(true.engine.recorded) == 2 and true.engine.update_graph and not true.engine.told()
    assert false.losses(BATCHES, RATES) == expected
    assert false.engine and not false.engine.record and not false.engine.recorded
    assert "replayed, it gives loss" in false.engine.told()[0]
    for bench in (true, false):
        assert all(torch.equal(a, b) for a, b in zip(bench.weights(), plain.weights(), strict=True))


@pytest.mark.parametrize("base", BASES)
def test_fused_layers_are_pefts_and_give_the_base_back(base):
    bench = Bench(base, "eager", targets="all-linear")
    c, micro = bench.subject.components, bench.subject.micro(64, 1, 0)
    before = attach.fingerprint(c)
    for p in bench.stepper.weights.exact:
        torch.nn.init.normal_(p.data, std=0.05)
    plain = bench.stepper._losses(micro)
    plain.sum().backward()
    gradients = [p.grad.clone() for p in bench.stepper.weights.exact]
    bench.stepper.weights.clear()
    adapter = attach.collect(bench.attached)
    assert not fused.obstacle(c.denoiser, attach.NAME)
    made = fused.fuse(c.denoiser, attach.NAME)
    assert sum(len(bank.groups) for bank in made.banks) < len(bench.attached.places), "nothing was grouped"
    found = bench.stepper._losses(micro)
    found.sum().backward()
    made.gather()
    assert torch.allclose(found, plain, rtol=1e-5)
    for p, expected in zip(bench.stepper.weights.exact, gradients, strict=True):
        assert (p.grad - expected).norm() <= 1e-4 * expected.norm()
    assert all(torch.equal(layer.down, adapter.layers[path].down) for path, layer in attach.collect(bench.attached).layers.items())
    made.undo()
    assert torch.equal(bench.stepper._losses(micro), plain) and attach.fingerprint(c) == before


def test_layers_that_do_more_than_a_plain_lora_are_not_fused():
    for values, words in (({"targets": "full+conv"}, "is not a plain LoRA layer"), ({"dropout": 0.1}, "is not a plain LoRA layer")):
        bench = Bench("demo-sdxl", "eager", **values)
        assert words in fused.obstacle(bench.subject.components.denoiser, attach.NAME)


def test_a_lean_base_computes_the_same_and_is_given_back():
    bench = Bench("demo-sdxl", "eager")
    c, micro = bench.subject.components, bench.subject.micro(64, 2, 0)
    for p in bench.stepper.weights.exact:
        torch.nn.init.normal_(p.data, std=0.05)
    plain = bench.stepper._losses(micro)
    plain.sum().backward()
    gradients = [p.grad.clone() for p in bench.stepper.weights.exact]
    bench.stepper.weights.clear()
    made = fast.lean(c.denoiser, c.device, compiled=False)
    assert sum("forward" in module.__dict__ for module in c.denoiser.modules()) > 20
    found = bench.stepper._losses(micro)
    found.sum().backward()
    assert torch.allclose(found, plain, rtol=1e-4)
    for p, expected in zip(bench.stepper.weights.exact, gradients, strict=True):
        assert (p.grad - expected).norm() <= 2e-3 * expected.norm()
    made.undo()
    assert not any("forward" in module.__dict__ for module in c.denoiser.modules())


def test_recomputing_a_share_of_the_blocks_changes_no_result():
    bench = Bench("demo-flux", "engine")
    c, micro = bench.subject.components, bench.subject.micro(64, 1, 0)
    passes: list[int] = []
    found = []
    for share in (0.0, 0.5, 1.0):
        fast.recompute(c.denoiser, share)
        counted = [block.register_forward_pre_hook(lambda *_: passes.append(1)) for block in c.denoiser.single_transformer_blocks]
        passes.clear()
        loss = bench.stepper._losses(micro).sum()
        loss.backward()
        bench.made.fused.gather()
        found.append([loss.detach(), *(grad.clone() for grad in bench.made.fused.gradients()), len(passes)])
        bench.made.fused.clear()
        for hook in counted:
            hook.remove()
    n = len(c.denoiser.single_transformer_blocks)
    assert found[0][-1] == n and n < found[1][-1] < 2 * n and found[2][-1] == 2 * n
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0][:-1], other[:-1], strict=True))


def test_the_way_is_chosen_with_a_reason():
    bench = Bench("demo-sdxl", "eager")
    assert choose(bench.attached, bench.config, steps=1000, shapes=1) == Speed("eager", "recording a step needs an NVIDIA GPU, this is cpu")
    asked = settings.build(TrainConfig, bench.config.model_dump() | {"speed": "eager"})
    assert choose(bench.attached, asked, steps=1000, shapes=1).why == "as the settings say"


def test_a_batch_is_taken_apart_and_put_together():
    micro = Bench("demo-sdxl", "eager").subject.micro(64, 1, 0)
    found = tensors(micro)
    assert {".batch.latents", ".batch.conditioning.prompt_embeds", ".batch.sizes", ".noise", ".level"} <= set(found)
    again = filled(micro, {name: tensor + 1 for name, tensor in found.items()})
    assert torch.equal(again.batch.conditioning["prompt_embeds"], micro.batch.conditioning["prompt_embeds"] + 1) and again.batch.names == micro.batch.names


def test_products_in_eight_bits_stay_close_and_give_gradients_to_input_and_lora_alone(monkeypatch):
    """Random numbers rounded to 3 bits of mantissa on both sides: some 3.5 % of the norm, and it must not be 0."""
    monkeypatch.setattr(scaled, "FEWEST", 32)
    bench = Bench("demo-flux", "eager")
    c = bench.subject.components
    for p in bench.stepper.weights.exact:
        torch.nn.init.normal_(p.data, std=0.05)
    made = fused.fuse(c.denoiser, attach.NAME)
    attention, linear = c.denoiser.transformer_blocks[0].attn, c.denoiser.transformer_blocks[0].ff.net[2]
    x, y = torch.randn(2, 5, attention.to_q.in_features, requires_grad=True), torch.randn(3, linear.in_features, requires_grad=True)

    def both() -> list[torch.Tensor]:
        x.grad = y.grad = None
        out, other = attention.to_qkv(x), linear(y)
        (out.sum() + other.square().sum()).backward()
        made.gather()
        found = [out, other, x.grad, y.grad, *(grad.clone() for grad in made.gradients())]
        made.clear()
        return found

    exact = both()
    kept, before, place = linear.weight.clone(), attach.fingerprint(c), linear.weight.data_ptr()
    assert scaled.reduce(c.denoiser, made) > 10
    assert linear.weight.data_ptr() != place and attach.fingerprint(c) == before, "the exact weights rest elsewhere, bit for bit"
    for ours, theirs in zip(both(), exact, strict=True):
        error = float((ours - theirs).detach().norm() / theirs.norm().clamp(min=1e-9))
        assert error < 0.08
    assert not torch.equal(attention.to_qkv(x), exact[0]), "nothing was rounded"
    assert all(p.grad is None for p in c.denoiser.parameters() if not p.requires_grad)
    with torch.no_grad():
        linear.weight.zero_()
        assert linear(y).any(), "the weights at rest take no part in the products"
        linear.weight.copy_(kept)
    made.undo()
    assert torch.equal(linear(y), exact[1]) and attach.fingerprint(c) == before


def test_eight_bits_are_refused_where_they_cannot_be():
    bench = Bench("demo-flux", "eager")
    with pytest.raises(SettingsError, match="fp8_products needs speed graph or compile"):
        prepare(bench.attached, Speed("eager", "this is a cpu"), fp8=True)
