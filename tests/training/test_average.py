"""Claims about the moving average: its formula, where it shows, and that training does not feel it."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from studio.events import Sample
from studio.lora import attach
from studio.lora.adapter import LowRank
from studio.training import checkpoint
from studio.training.average import Average
from studio.training.step import Weights

from .test_loop import outcome, told


def layer(dtype=torch.float32) -> tuple[nn.Module, Weights]:
    module = nn.Linear(3, 2, bias=False)
    return module, Weights({"weight": module.weight}, {"weight": 1.0}, dtype)


def test_the_average_follows_its_formula():
    module, weights = layer()
    average, expected = Average(weights, decay=0.9), module.weight.detach().clone()
    for n in range(1, 40):
        with torch.no_grad():
            module.weight.copy_(torch.full((2, 3), float(n)))
        average.update()
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
        torch.testing.assert_close(average.shadow[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_run_with_the_average_and_get_their_own_bits_back(dtype):
    module, weights = layer(dtype)
    average = Average(weights, 0.9)
    with torch.no_grad():
        weights.exact[0].add_(0.123)
        weights.publish()
    average.update()
    before, exact = module.weight.detach().clone(), weights.exact[0].detach().clone()
    with average.running():
        assert torch.equal(module.weight, average.shadow[0].to(dtype)) and not torch.equal(module.weight, before)
    with average.exposed():
        assert module.weight.dtype == torch.float32 and torch.equal(module.weight, average.shadow[0])
    assert torch.equal(module.weight, before) and torch.equal(weights.exact[0], exact)


def test_what_the_average_carries_comes_back_bit_for_bit():
    _, weights = layer()
    average = Average(weights, 0.9)
    with torch.no_grad():
        weights.exact[0].mul_(1.7)
    average.update()
    held, told_of = {name: t.detach().clone() for name, t in average.tensors().items()}, average.entries()
    _, other = layer()
    again = Average(other, 0.9)
    again.restore(held, told_of)
    assert torch.equal(again.shadow[0], average.shadow[0]) and torch.equal(other.exact[0], weights.exact[0]) and again.updates == 1


def test_a_run_trains_as_without_and_saves_the_average(studio, tmp_path, of_kind):
    plain = list(studio.run(studio.config(steps=4), tmp_path / "plain"))
    averaged = list(studio.run(studio.config(steps=4, ema_decay=0.99), tmp_path / "averaged"))
    assert told(averaged) == told(plain)
    assert of_kind(averaged, "started")[0].facts["saved_weights"] == "moving average, decay 0.99"
    path = tmp_path / "averaged" / "checkpoints" / "step-000004"
    held, shown = checkpoint.part(path, "ema"), load_file(path / checkpoint.ADAPTER)
    unaveraged = outcome(tmp_path / "plain", 4)[0]
    for name, tensor in shown.items():
        if not name.endswith(".alpha"):
            module, factor = name.removeprefix("unet.").rsplit(".", 1)
            key = f"{module}.{'lora_A' if factor == 'down' else 'lora_B'}.{attach.NAME}.weight"
            assert torch.equal(tensor, held[f"average/{key}"])
            assert torch.equal(unaveraged[name], held[f"weights/{key}"])
    assert any(not torch.equal(shown[name], unaveraged[name]) for name in shown)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_previews_see_the_average_and_disturb_nothing(studio, tmp_path, precision):
    seen = []

    def preview(c, step, folder):
        ups = {name: p.detach().float() for name, p in c.denoiser.named_parameters() if attach.UP in name}
        seen.append({f"unet.{name.partition('.lora_B.')[0]}": up.clone() for name, up in ups.items()})
        yield Sample(step=step, path="samples/1.png", prompt="p", seed=1)

    values = {"steps": 3, "ema_decay": 0.99, "precision": precision}
    with_previews = told(studio.run(studio.config(**values, sample_every=3), tmp_path / "a", preview=preview))
    assert with_previews == told(studio.run(studio.config(**values), tmp_path / "b"))
    shown = checkpoint.adapter(tmp_path / "a" / "checkpoints" / "step-000003")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for path, up in seen[0].items():
        layer = shown.layers[path]
        assert isinstance(layer, LowRank)
        assert torch.equal(up, layer.up.to(dtype).float())


def test_resuming_with_an_average_equals_an_unbroken_run(studio, tmp_path):
    values = {"steps": 4, "ema_decay": 0.99, "gradient_accumulation": 2}
    straight = told(studio.run(studio.config(**values, save_every=2), tmp_path / "straight"))
    middle = tmp_path / "straight" / "checkpoints" / "step-000002"
    again = told(studio.run(studio.config(**values, start_from=str(middle)), tmp_path / "again"))
    assert again == straight[2:]
    ends = [tmp_path / run / "checkpoints" / "step-000004" for run in ("straight", "again")]
    for name in ("ema.safetensors", checkpoint.ADAPTER, checkpoint.OPTIMIZER):
        one, two = (load_file(end / name) for end in ends)
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one), name
    assert checkpoint.state(ends[0]).entries == checkpoint.state(ends[1]).entries == {"ema": {"updates": 4}}
