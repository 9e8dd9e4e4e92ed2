"""Every kind of network through the whole loop: it learns, resumes to the bit, and its file says what was trained."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from studio.errors import RunError, SettingsError
from studio.lora import formats
from studio.lora.adapter import LowRank
from studio.training import checkpoint

from .test_lineage import edited
from .test_loop import told

NETWORKS: dict[str, dict[str, Any]] = {
    "rslora": {"rank_stabilized": True, "lora_plus_ratio": 4, "block_rates": "attn=0.5", "block_ranks": ["to_k=2"], "dropout": 0.2},
    "pissa": {"init": "pissa"},
    "olora": {"init": "olora", "dropout": 0.2},
    "gaussian-conv": {"init": "gaussian", "targets": "full+conv"},
    "dora": {"network": "dora", "dropout": 0.1, "targets": "full+conv"},
    "loha": {"network": "loha", "targets": "full+conv"},
    "lokr": {"network": "lokr", "targets": "full+conv"},
    "adalora": {"network": "adalora", "dropout": 0.1},
}
STEPS, FEWEST = 4, 10  # adalora refuses fewer
CI = {("demo-sdxl", name) for name in ("rslora", "dora", "adalora")} | {("demo-flux", name) for name in ("pissa", "loha", "lokr")}
MATRIX = [
    pytest.param(base, name, marks=() if (base, name) in CI else pytest.mark.long, id=f"{base}-{name}")
    for base in ("demo-sdxl", "demo-flux")
    for name in NETWORKS
]


def everything(folder, step: int) -> dict[str, torch.Tensor]:
    path = checkpoint.verify(folder / "checkpoints" / f"step-{step:06d}").path
    return {f"{file.name}:{name}": tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(("base", "name"), MATRIX)
def test_a_network_resumes_to_the_bit_and_its_file_holds_what_was_trained(studio, tmp_path, base, name, of_kind):
    steps = FEWEST if name == "adalora" else STEPS
    values = {"base": base, "steps": steps, "precision": "bf16" if name == "rslora" else "fp32", **NETWORKS[name]}
    events = list(studio.run(studio.config(**values, save_every=steps - 2), tmp_path / "straight"))
    halfway = str(tmp_path / "straight" / "checkpoints" / f"step-{steps - 2:06d}")
    after = list(studio.run(studio.config(**values, start_from=halfway), tmp_path / "cut"))
    assert told(after) == told(events)[-2:]
    straight, cut = everything(tmp_path / "straight", steps), everything(tmp_path / "cut", steps)
    assert straight.keys() == cut.keys() and [key for key in straight if not torch.equal(straight[key], cut[key])] == []
    adapter = checkpoint.adapter(tmp_path / "straight" / "checkpoints" / f"step-{steps:06d}")
    assert len(adapter.layers) == of_kind(events, "started")[0].facts["modules"]
    file = tmp_path / "file.safetensors"
    formats.write(adapter, file, dtype="fp32")
    assert formats.verify(file, adapter)["worst_difference"] <= 1e-6


@pytest.mark.parametrize(("base", "format", "network"), [("demo-sdxl", "nf4", "lora"), ("demo-flux", "fp8", "dora")])
def test_a_base_in_fewer_bits_is_trained_on_and_resumes_to_the_bit(studio, tmp_path, of_kind, base, format, network):
    values = {"base": base, "steps": 3, "base_format": format, "network": network}
    events = list(studio.run(studio.config(**values, save_every=2), tmp_path / "straight"))
    assert of_kind(events, "started")[0].facts["base_format"] == format
    halfway = str(tmp_path / "straight" / "checkpoints" / "step-000002")
    assert told(studio.run(studio.config(**values, start_from=halfway), tmp_path / "cut")) == told(events)[2:]
    straight, cut = everything(tmp_path / "straight", 3), everything(tmp_path / "cut", 3)
    assert [key for key in straight if not torch.equal(straight[key], cut[key])] == []
    full = told(studio.run(studio.config(**{**values, "base_format": "full", "steps": 1}), tmp_path / "full"))
    assert told(events)[0][1] != full[0][1] and told(events)[0][1] == pytest.approx(full[0][1], rel=0.2)


@pytest.mark.long
@pytest.mark.parametrize(("base", "name"), [(base, name) for base in ("demo-sdxl", "demo-flux") for name in NETWORKS])
def test_a_network_learns(studio, tmp_path, base, name):
    losses = [step[1] for step in told(studio.run(studio.config(base, steps=40, batch_size=3, **{"rank": 8} | NETWORKS[name]), tmp_path))]
    assert sum(losses[-15:]) < 0.9 * sum(losses[:15])


def test_a_dora_on_parts_of_fused_layers_leaves_as_whole_ones_and_goes_on(studio, tmp_path):
    """Files keep q, k, v and the MLP of a FLUX.1 block as one layer, whose DoRA needs the lengths of all rows, trained or not."""
    values = {"base": "demo-flux", "network": "dora", "steps": 3}
    events = told(studio.run(studio.config(**values, save_every=2), tmp_path / "straight"))
    halfway = tmp_path / "straight" / "checkpoints" / "step-000002"
    assert told(studio.run(studio.config(**values, start_from=str(halfway)), tmp_path / "cut")) == events[2:]
    adapter = checkpoint.adapter(halfway)
    assert any(path.endswith("proj_mlp") for path in adapter.layers)
    file = tmp_path / "file.safetensors"
    formats.write(adapter, file, dtype="fp32")
    assert formats.verify(file, adapter)["worst_difference"] <= 1e-6


@pytest.mark.parametrize(("final", "left"), [(None, 1.0), (0.5, 0.5), (3.9, 3.9)])
def test_adalora_leaves_the_ranks_that_were_asked_for_to_the_layers_that_need_them(studio, tmp_path, final, left):
    """A quarter of them where nothing is said; a mean below one leaves most layers without effect."""
    list(studio.run(studio.config(network="adalora", rank=4, final_rank=final, steps=FEWEST), tmp_path))
    last = checkpoint.adapter(tmp_path / "checkpoints" / f"step-{FEWEST:06d}")
    layers = [layer for layer in last.layers.values() if isinstance(layer, LowRank)]
    # A layer that lost every rank keeps one empty one, so that it is known.
    ranks = [layer.rank if layer.up.any() else 0 for layer in layers]
    assert len(ranks) == len(last.layers) and sum(ranks) == round(left * len(ranks))
    assert len(set(ranks)) > 1 and max(ranks) <= 4


def test_an_adalora_run_of_other_ranks_is_not_gone_on_from(studio, tmp_path):
    """Whether they were named or, as in runs of before there was a choice, not known at all."""
    config = studio.config(network="adalora", steps=FEWEST, save_every=1)
    running = studio.run(config, tmp_path)
    next(event for event in running if event.kind == "checkpoint")
    running.close()
    stored = tmp_path / "checkpoints" / "step-000001"
    assert checkpoint.state(stored).settings["final_rank"] == 1.0
    with pytest.raises(SettingsError, match=r"final_rank 1.0 -> 2.0; put them back, or fork it"):
        list(studio.run(config.model_copy(update={"final_rank": 2.0, "start_from": str(stored)}), tmp_path))
    edited(stored, settings={name: value for name, value in checkpoint.state(stored).settings.items() if name != "final_rank"})
    with pytest.raises(SettingsError, match=r"final_rank None -> 1.0"):
        list(studio.run(config.model_copy(update={"start_from": str(stored)}), tmp_path))


def test_the_learning_rates_of_groups_reach_the_weights(studio, tmp_path):
    """With a factor that is next to nothing, layers stand still while the others move."""
    list(studio.run(studio.config(block_rates=["attn1=1e-9"], steps=2, weight_decay=0), tmp_path))
    layers = checkpoint.adapter(tmp_path / "checkpoints" / "step-000002").layers
    ups = {path: layer.up.abs().max().item() for path, layer in layers.items() if isinstance(layer, LowRank)}
    assert all((up > 1e-6) == ("attn1" not in path) for path, up in ups.items())


def test_the_page_is_told_the_scale_beside_the_rate(studio, tmp_path, of_kind):
    facts = of_kind(studio.run(studio.config(alpha=2.0, rank=4, rank_stabilized=True, steps=1), tmp_path), "started")[0].facts
    assert facts["scale"] == 1.0 and facts["modules"] == 88


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "adalora", "steps": 5}, "too short for adalora"),
        ({"network": "adalora", "steps": 20, "ema_decay": 0.9}, "takes ranks away"),
        ({"network": "adalora", "steps": 20, "rank": None, "final_rank": 500}, "final_rank 500 takes nothing away from rank [0-9]+:"),
        ({"optimizer": "prodigy", "lora_plus_ratio": 16}, "prodigy finds one rate"),
        ({"init": "pissa", "start_from": "x.safetensors"}, "both say what the weights begin as"),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_step(studio, tmp_path, settings, message):
    with pytest.raises(SettingsError, match=message):
        list(studio.run(studio.config(**settings), tmp_path))


@pytest.mark.parametrize(
    ("base", "settings", "message"),
    [
        ("demo-sdxl", {"network": "dora"}, "InvokeAI and A1111 some 20 times too strong"),
        ("demo-sdxl", {"network": "loha"}, "diffusers and sd-scripts do not"),
        ("demo-flux", {"network": "lokr"}, "only ComfyUI"),
        ("demo-flux", {"init": "olora"}, "has rank 8"),
    ],
)
def test_what_a_file_cannot_carry_is_said_before_training(studio, tmp_path, of_kind, base, settings, message):
    running = studio.run(studio.config(base, **settings), tmp_path)
    told_first = []
    for event in running:
        if event.kind == "started":
            break
        told_first.append(event)
    running.close()
    assert any(message in event.message for event in of_kind(told_first, "warned"))


def test_a_base_that_changes_under_a_run_is_noticed_and_nothing_is_saved(studio, tmp_path):
    def preview(c, step, folder):
        with torch.no_grad():
            next(p for p in c.denoiser.parameters() if not p.requires_grad).view(-1)[3] += 1e-3
        return iter(())

    with pytest.raises(RunError, match="the frozen base changed while training"):
        list(studio.run(studio.config(steps=2, sample_every=1), tmp_path, preview=preview))
    assert not list((tmp_path / "checkpoints").glob("step-*"))
