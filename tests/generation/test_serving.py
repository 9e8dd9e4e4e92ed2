"""Several orders in one pass: each as if it were alone, and none harmed by what happens to another."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from PIL import Image

from studio import families
from studio.config import GenerateConfig, LoraWeight, build
from studio.config.generating.passes import shared_pass
from studio.errors import Cancelled, FormatError, RunError
from studio.events import Event, Finished, Preview, Started, Step, Warned
from studio.events import Image as Drawn
from studio.families.base import Components
from studio.generation import grids, together
from studio.generation.orders import Order
from studio.generation.sampler import generate
from studio.generation.serving import serve
from studio.lora.adapter import Adapter, LowRank
from tests.generation.conftest import Asked, adapter, room_for

Rows = list[tuple[Adapter, float | LoraWeight]]


def config(c: Components, **values: object) -> GenerateConfig:
    return build(GenerateConfig, {"base": c.base.name, "width": 64, "height": 64, "steps": 3, "live_preview": 0, "batch": 4, "seed": 9, **values})


def order(c: Components, folder: Path, rows: Rows, asked: Asked | None = None, **values: object) -> Order:
    return Order(config(c, **values), rows, folder, asked or Asked(), [f"lora-{i}" for i in range(len(rows))])


@dataclass
class Heard:
    """What one order said."""

    events: list[Event] = field(default_factory=list)
    error: Exception | None = None

    def pixels(self, folder: Path) -> list[torch.Tensor]:
        paths = [folder / event.path for event in self.events if isinstance(event, Drawn)]
        return [torch.frombuffer(bytearray(Image.open(path).tobytes()), dtype=torch.uint8).int() for path in paths]


def heard(c: Components, orders: list[Order]) -> list[Heard]:
    found = [Heard() for _ in orders]
    for number, said in serve(c, orders):
        assert found[number].error is None, "an order that has ended says nothing more"
        if isinstance(said, Exception):
            found[number].error = said
        else:
            found[number].events.append(said)
    return found


def alone(c: Components, one: Order) -> list[Event]:
    return list(generate(c, one.stack, one.config, one.folder, requests=one.requests, names=one.names))


@pytest.fixture
def latents(c: Components, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """Every picture's latents, as the VAE gets them."""
    seen: list[torch.Tensor] = []
    family = families.get(c.facts.name)
    plain = type(family).decode_latents

    def watched(self, components, found):
        seen.append(found.clone())
        return plain(self, components, found)

    monkeypatch.setattr(type(family), "decode_latents", watched)
    yield seen


def test_orders_drawn_at_once_equal_those_drawn_alone(c: Components, tmp_path: Path, latents: list[torch.Tensor]) -> None:
    """Different prompts, seeds and stacks: a curve over the steps, text encoders that are trained too, no stack at all."""
    ink, wash, spoken = adapter(c, 1), adapter(c, 2), adapter(c, 3, (".attn", "text_model"))
    stacks: list[Rows] = [[(ink, 0.8), (wash, -0.3)], [(spoken, 0.6)], [], [(ink, LoraWeight.parse("x=1,curve=1@0/0@1"))]]
    own = [{"prompt": f"cat {i}", "seed": 10 * i} for i in range(len(stacks))]
    orders = [order(c, tmp_path / f"{i}", rows, **values) for i, (rows, values) in enumerate(zip(stacks, own, strict=True))]
    found = heard(c, orders)
    at_once, latents[:] = list(latents), []
    assert len(at_once) == len(orders)
    for i, one in enumerate(orders):
        apart = Order(one.config, one.stack, tmp_path / f"apart-{i}", one.requests, one.names)
        events = alone(c, apart)
        difference = (latents[-1] - at_once[i]).abs().max() / latents[-1].abs().max()
        assert difference < 1e-5
        ours, theirs = found[i].events, [event for event in events if not isinstance(event, Warned)]
        assert [event.kind for event in ours] == [event.kind for event in theirs]
        assert [event.settings for event in ours if isinstance(event, Drawn)] == [event.settings for event in theirs if isinstance(event, Drawn)]
        started = next(event for event in ours if isinstance(event, Started))
        assert started.total == 3 and started.facts["at_once"] == "4 pictures"
    assert (at_once[0] - at_once[2]).abs().max() > 0.1, "stacks that do nothing compare nothing"


def test_an_order_of_several_pictures_counts_its_own_steps(c: Components, tmp_path: Path) -> None:
    two, one = heard(c, [order(c, tmp_path / "a", [(adapter(c, 1), 0.5)], count=2, seed=1), order(c, tmp_path / "b", [], seed=7, live_preview=0.001)])
    assert [(event.step, event.total) for event in two.events if isinstance(event, Step)] == [(2, 6), (4, 6), (6, 6)]
    assert [(event.step, event.total) for event in one.events if isinstance(event, Step)] == [(1, 3), (2, 3), (3, 3)]
    assert [event.seed for event in two.events if isinstance(event, Drawn)] == [1, 2]
    assert any(isinstance(event, Preview) and (tmp_path / "b" / event.path).is_file() for event in one.events)
    assert not any(isinstance(event, Preview) for event in two.events)
    last = two.events[-1]
    assert isinstance(last, Finished) and last.step == 6 and last.result["images"] == [event.path for event in two.events if isinstance(event, Drawn)]


def test_a_cancelled_order_leaves_and_its_mates_go_on(c: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.generation.denoise.LOOK_SECONDS", 1e9)
    ink: Rows = [(adapter(c, 1), 0.5)]
    orders = [
        order(c, tmp_path / "gone", ink, Asked("cancel", 2)),
        order(c, tmp_path / "stays", ink, seed=4),
        order(c, tmp_path / "leaves", [], Asked("leave", 1)),
    ]
    gone, stays, leaves = heard(c, orders)
    assert isinstance(gone.error, Cancelled) and "0 of 1" in str(gone.error) and isinstance(leaves.error, RunError)
    assert [sum(isinstance(event, Step) for event in one.events) for one in (gone, stays, leaves)] == [2, 3, 1]
    assert not list(tmp_path.glob("gone/images/*")) and not list(tmp_path.glob("leaves/images/*"))
    assert stays.events[-1].kind == "finished"
    alone(c, order(c, tmp_path / "apart", ink, seed=4))
    [one], [apart] = (
        stays.pixels(tmp_path / "stays"),
        [torch.frombuffer(bytearray(Image.open(next(tmp_path.glob("apart/images/*"))).tobytes()), dtype=torch.uint8)],
    )
    assert (one - apart.int()).abs().max() <= 1


def test_a_pass_that_everybody_cancels_ends_within_a_step(c: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.generation.denoise.LOOK_SECONDS", 0.0)
    found = heard(c, [order(c, tmp_path / f"{i}", [], Asked("cancel", 1), steps=50) for i in range(2)])
    assert all(isinstance(one.error, Cancelled) and not any(isinstance(event, Step) for event in one.events) for one in found)


def test_a_broken_mate_fails_alone_and_the_base_stays_whole(c: Components, tmp_path: Path) -> None:
    ink = adapter(c, 1)
    path, layer = next(iter(ink.layers.items()))
    assert isinstance(layer, LowRank)
    endless = Adapter(c.facts.name, {path: LowRank(layer.down, layer.up * float("inf"), layer.alpha)})
    nowhere = Adapter(c.facts.name, {f"{c.facts.denoiser}.nowhere": layer})
    stacks: list[Rows] = [[(ink, 0.5)], [(endless, 1.0)], [(nowhere, 1.0)], []]
    first, bad, lost, base = heard(c, [order(c, tmp_path / f"{i}", rows) for i, rows in enumerate(stacks)])
    assert isinstance(bad.error, FormatError) and isinstance(lost.error, FormatError)
    assert not first.error and not base.error and len(first.pixels(tmp_path / "0")) == len(base.pixels(tmp_path / "3")) == 1
    assert any(isinstance(event, Warned) and "smaller parts" in event.message for event in first.events)
    assert torch.equal(base.pixels(tmp_path / "3")[0], heard(c, [order(c, tmp_path / "again", [])])[0].pixels(tmp_path / "again")[0])


def test_a_picture_of_no_numbers_ends_its_order_alone(c: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = together.latents

    def spoiled(*rest):
        found = yield from plain(*rest)
        found[0] = float("nan")
        return found

    monkeypatch.setattr(together, "latents", spoiled)
    bad, good = heard(c, [order(c, tmp_path / "bad", []), order(c, tmp_path / "good", [])])
    assert isinstance(bad.error, RunError) and "no numbers" in str(bad.error) and good.events[-1].kind == "finished"


def test_too_little_memory_halves_the_pass(c: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = room_for(2, monkeypatch)
    found = heard(c, [order(c, tmp_path / f"{i}", [], steps=1, seed=i) for i in range(4)])
    assert sizes == [4, 2, 2] and all(one.events[-1].kind == "finished" for one in found)


def test_settings_that_differ_in_more_than_words_seeds_and_stacks_share_no_pass(c: Components) -> None:
    one = config(c, prompt="cat", seed=1)
    assert shared_pass(one) == shared_pass(config(c, prompt="dog", seed=2, loras=["ink=0.4"], count=3, batch=3, format="webp", negative_prompt="x"))
    for values in ({"steps": 4}, {"width": 128}, {"sampler": "DDIM"}, {"guidance": 2.0}, {"stack_mode": "live"}, {"precision": "bf16"}, {"vae": "other"}):
        assert shared_pass(config(c, **values)) not in ("", shared_pass(one))
    for values in ({"batch": 1}, {"count": 5}, {"init_image": "x.png"}, {"hires_scale": 2.0}, {"upscale": 2.0}, {"grid": ["seed=1,2"]}):
        assert shared_pass(config(c, **values)) == ""


def test_the_cells_of_a_grid_of_stacks_are_drawn_at_once(c: Components, tmp_path: Path) -> None:
    adapters = {"ink": adapter(c, 1), "wash": adapter(c, 2)}
    axes = ["stack=ink=1+wash=0.5|wash=-1|ink=0", "steps=1,2"]
    whole = config(c, prompt="a cat", seed=3, grid=axes, batch=3)
    assert [list(group) for group in grids.groups(grids.cells(whole))] == [[0, 1, 2], [3, 4, 5]]
    found = {}
    for batch in (3, 1):
        events = list(grids.generate(c, adapters, config(c, prompt="a cat", seed=3, grid=axes, batch=batch), tmp_path / f"{batch}", requests=Asked(), files={}))
        drawn = [event for event in events if isinstance(event, Drawn)]
        assert [event.index for event in drawn] == list(range(6)) and [event.step for event in events if isinstance(event, Step)] == list(range(1, 10))
        assert [len(build(GenerateConfig, event.settings).loras) for event in drawn] == [2, 1, 1, 2, 1, 1]
        found[batch] = Heard(events).pixels(tmp_path / f"{batch}")
    assert all((one - other).abs().max() <= 1 for one, other in zip(found[3], found[1], strict=True))
    assert len({bytes(one.byte().numpy()) for one in found[1]}) == 6
