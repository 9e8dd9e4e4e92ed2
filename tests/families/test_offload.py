"""Blocks that wait in main memory: nothing that is computed differs by a bit, and no more than a ring of them is on the device at once."""

import pytest
import torch
from torch import Tensor, nn

from studio import config as settings
from studio.bench import subjects
from studio.config import TrainConfig
from studio.families import away, offload, quantised
from studio.lora import attach
from studio.training import objective
from studio.training.step import Stepper

CPU = torch.device("cpu")
BASES = ("demo-sdxl", "demo-flux")


class Trained:
    """A demo base with a fresh adapter on which steps are taken, a share of its blocks waiting."""

    def __init__(self, base: str, share: float, format: str = "full", slots: int = away.SLOTS, **values):
        self.subject = subjects.load(base.removeprefix("demo-"), "demo", torch.float32, CPU)
        c = self.subject.components
        if format != "full":
            quantised.quantise(c.denoiser, format, CPU)
        config = settings.build(TrainConfig, {"base": base, "images": "x", "rank": 4, "alpha": 2, "seed": 3, "resolution": 64, "learning_rate": 1e-2} | values)
        self.waiting = offload.names(c.denoiser, share)
        torch.manual_seed(3)
        self.attached = attach.attach(c, config)
        c.denoiser.train()
        self.print = attach.fingerprint(c)
        self.ring = offload.wait(c.denoiser, self.waiting, CPU, lambda name: attach.NAME in name.split("."), slots=slots) if share else None
        goal = objective.choose(c.objective, c.parts["scheduler"].config, c.denoiser.config, config)
        self.stepper = Stepper(self.attached, self.subject.family, goal, config)

    def told(self) -> list[Tensor]:
        """Losses, gradients and weights of two steps, one of them over two batches, with a look without gradients in between."""
        found = []
        for number, micros in enumerate(([0, 1], [2])):
            loss = self.stepper.accumulate([self.subject.micro(64, 2, n) for n in micros], 2 * len(micros))
            found += [loss, *(gradient.clone() for gradient in self.stepper.weights.gradients())]
            self.stepper.update(loss, 1e-2)
            found += [self.stepper.measure(self.subject.micro(64, 2, 10 + number)), *(p.detach().clone() for p in self.stepper.weights.exact)]
        return found


@pytest.mark.parametrize(
    ("base", "share", "format"), [("demo-sdxl", 1.0, "full"), ("demo-sdxl", 0.5, "int8"), ("demo-flux", 0.4, "full"), ("demo-flux", 1.0, "nf4")]
)
def test_steps_with_waiting_blocks_are_the_same_bit_for_bit_and_leave_the_base_alone(base: str, share: float, format: str) -> None:
    plain, waits = Trained(base, 0.0, format), Trained(base, share, format)
    assert all(torch.equal(one, other) for one, other in zip(plain.told(), waits.told(), strict=True))
    c = waits.subject.components
    assert waits.print == plain.print == attach.fingerprint(c)
    assert waits.ring is not None
    waits.ring.close()
    assert waits.print == attach.fingerprint(c)
    assert not any(offload.is_waiting(module) for module in c.denoiser.modules())
    assert torch.equal(plain.stepper.measure(plain.subject.micro(64, 2, 20)), waits.stepper.measure(waits.subject.micro(64, 2, 20)))


def test_a_dora_whose_layers_read_the_base_is_the_same_bit_for_bit() -> None:
    plain, waits = Trained("demo-sdxl", 0.0, network="dora"), Trained("demo-sdxl", 1.0, network="dora")
    assert all(torch.equal(one, other) for one, other in zip(plain.told(), waits.told(), strict=True))


@pytest.mark.parametrize("base", BASES)
def test_weights_come_from_where_they_wait(base: str) -> None:
    plain, waits = Trained(base, 0.0), Trained(base, 0.5)
    assert waits.ring is not None
    for block in waits.ring.blocks:
        block.home.zero_()
    assert not torch.equal(plain.told()[0], waits.told()[0])


def test_a_ring_of_more_buffers_brings_more_blocks_ahead_and_changes_nothing() -> None:
    plain, waits = Trained("demo-sdxl", 0.0), Trained("demo-sdxl", 0.6, slots=4)
    assert all(torch.equal(one, other) for one, other in zip(plain.told(), waits.told(), strict=True))
    ring = waits.ring
    assert ring is not None and len(ring.slots) == 4
    with torch.no_grad():
        ring.need(ring.order[2], back=False)
        assert {*ring.order[2:6]} == {slot.holds for slot in ring.slots}
        ring.need(ring.order[-2], back=False)
        assert {ring.order[-2], ring.order[-1], *ring.order[:2]} == {slot.holds for slot in ring.slots}
        ring.need(ring.order[-1], back=True)
        assert {*ring.order[-4:]} == {slot.holds for slot in ring.slots}


@pytest.mark.parametrize("base", BASES)
def test_every_block_comes_once_on_the_way_forward_and_once_on_the_way_back(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = Trained(base, 1.0)
    ring = waits.ring
    assert ring is not None
    fetched: list[offload.Block] = []
    fetch = ring._fetch
    monkeypatch.setattr(ring, "_fetch", lambda block, *wanted: (fetched.append(block), fetch(block, *wanted))[1])
    needed: list[bool] = []
    need = ring.need
    monkeypatch.setattr(ring, "need", lambda block, back: (needed.append(any(slot.holds is block for slot in ring.slots)), need(block, back=back))[1])
    counts = []
    for number in range(3):
        fetched.clear(), needed.clear()
        waits.stepper.accumulate([waits.subject.micro(64, 2, number)], 2)
        counts.append((len(fetched), all(needed)))
    n = len(ring.blocks)
    # The two that are there at a turn need not come again; nothing below the first LoRA layer is needed on the way back.
    assert counts[0][1] is False and counts[2] == (2 * (n - 2) + (2 - ring.turn if ring.turn else 0), True)
    assert sorted(map(id, ring.order)) == sorted(map(id, ring.blocks))
    fetched.clear(), needed.clear()
    for number in range(2):
        waits.stepper.measure(waits.subject.micro(64, 2, number))
    assert all(needed) and len(fetched) <= 2 * n  # the first of the next pass is on its way


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("base", BASES)
def test_what_lies_on_the_device_is_what_the_sizes_say(base: str, share: float) -> None:
    waits = Trained(base, share, "int8")
    assert waits.ring is not None
    model = subjects.load(base.removeprefix("demo-"), "demo", torch.float32, CPU).components.denoiser
    quantised.quantise(model, "int8", CPU)
    sizes = {name: tensor.nbytes for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    blocks = away.blocks(sizes)
    ring = sum(slot.memory.nbytes for slot in waits.ring.slots)
    assert ring == min(2, len(waits.ring.blocks)) * max(block.size for block in waits.ring.blocks)
    assert away.on_device(sizes, share) == sum(map(away.aligned, sizes.values())) - waits.ring.bytes + ring
    assert abs(waits.ring.bytes - share * sum(blocks.values())) <= max(blocks.values())


def test_nothing_waits_at_a_share_of_zero_and_blocks_that_wait_are_spread_evenly() -> None:
    sizes = {f"transformer_blocks.{i}.weight": 1024 for i in range(12)} | {"proj_out.weight": 1000}
    blocks = away.blocks(sizes)
    assert list(blocks) == [f"transformer_blocks.{i}" for i in range(12)]
    assert away.chosen(blocks, 0.0) == [] and away.chosen(blocks, 1.0) == list(blocks)
    assert away.chosen(blocks, 0.25) == [f"transformer_blocks.{i}" for i in (1, 5, 9)]
    assert away.on_device(sizes, 0.0) == 12 * 1024 + 1024
    assert away.on_device(sizes, 1.0) == 2 * 1024 + 1024


def test_tensors_that_see_one_memory_still_do_where_they_wait() -> None:
    linear = nn.ModuleList([nn.Linear(8, 4), nn.Linear(8, 4)]).requires_grad_(False)
    joined = torch.cat([part.weight.data for part in linear])  # type: ignore[union-attr]
    for part, piece in zip(linear, joined.chunk(2), strict=True):
        part.weight.data = piece
    before = joined.clone()
    block = offload.Block(linear, [joined, *linear.parameters()], CPU)
    for memory in (block.home.clone(), block.home):
        block.bind(memory)
        assert torch.equal(joined, before) and torch.equal(torch.cat([part.weight for part in linear]), before)  # type: ignore[misc]
    linear[1].weight.data[0, 0] = 5.0  # type: ignore[index]
    assert joined[4, 0] == 5.0 and block.size == 2 * 256 + 256
