"""Claims about optimizers and schedules."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from studio.config import TrainConfig
from studio.config.training import optimization
from studio.errors import SettingsError
from studio.training import optim

NAMES = sorted(optim.OPTIMIZERS)
SHAPES = {"a.b": (64, 80), "c/d": (6,)}  # the first is large enough for 8 bits

STEPS = 20  # before the cut; Prodigy's estimate moves only after several


def config(**values) -> TrainConfig:
    return TrainConfig(images="x", learning_rate=1.0 if values.get("optimizer") == "prodigy" else 0.01, **values)


def rates(total: int, **values) -> list[float]:
    return [round(optim.learning_rate(step, total, config(**values)), 6) for step in range(1, total + 1)]


def test_schedules():
    assert rates(4) == [0.01] * 4
    assert rates(4, lr_schedule="linear") == [0.01, 0.0075, 0.005, 0.0025]
    assert rates(4, lr_schedule="cosine") == [0.01, 0.008536, 0.005, 0.001464]
    assert rates(4, lr_schedule="polynomial", lr_power=2) == [0.01, 0.005625, 0.0025, 0.000625]
    assert rates(4, lr_schedule="polynomial", lr_power=1) == rates(4, lr_schedule="linear")
    assert rates(8, lr_schedule="cosine-restarts", lr_cycles=2) == 2 * rates(4, lr_schedule="cosine")
    assert rates(6, lr_schedule="linear", warmup_steps=2) == [0.005, 0.01, 0.01, 0.0075, 0.005, 0.0025]


def test_warm_up_longer_than_the_run_never_reaches_the_peak():
    assert rates(3, warmup_steps=10) == [0.001, 0.002, 0.003]


def test_the_first_step_of_adamw_is_the_learning_rate():
    weight = torch.ones(3, requires_grad=True)
    opt = optim.optimizer([weight], config(weight_decay=0.0))
    weight.grad = torch.tensor([5.0, -0.1, 2.0])
    opt.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([0.99, 1.01, 0.99]))


def stepped(opt, weights, numbers):
    for i in numbers:
        for k, weight in enumerate(weights):
            weight.grad = torch.sin(torch.arange(weight.numel(), dtype=torch.float32) * (i + k + 1)).reshape(weight.shape) + 1
        opt.step()


def kept_and_read(opt, folder):
    """What a checkpoint makes of an optimizer's memory."""
    save_file({name: tensor.detach().clone() for name, tensor in optim.state_tensors(opt, SHAPES).items()}, folder / "memory.safetensors")
    return load_file(folder / "memory.safetensors")


def fresh():
    return [torch.linspace(-1, 1, math.prod(shape)).reshape(shape).requires_grad_() for shape in SHAPES.values()]


@pytest.mark.parametrize("name", NAMES)
def test_memory_given_back_goes_on_bit_for_bit(name, tmp_path):
    """Through a file, for every optimizer: moments, counts, what groups remember, the point a schedule-free one trains at."""
    straight = fresh()
    opt = optim.optimizer(straight, config(optimizer=name))
    stepped(opt, straight, range(STEPS))
    kept = kept_and_read(opt, tmp_path)
    resumed = [weight.detach().clone().requires_grad_() for weight in straight]
    stepped(opt, straight, range(STEPS, STEPS + 4))

    other = optim.optimizer(resumed, config(optimizer=name))
    optim.load_state_tensors(other, list(SHAPES), kept)
    assert optim.state_tensors(other, SHAPES).keys() == kept.keys()
    stepped(other, resumed, range(STEPS, STEPS + 4))
    assert [torch.equal(one, two) for one, two in zip(straight, resumed, strict=True)] == [True] * len(SHAPES)
    assert all(optim.state_tensors(other, SHAPES)[key].equal(value) for key, value in optim.state_tensors(opt, SHAPES).items())


NEEDED = [("adamw", "exp_avg"), ("adamw", "step"), ("adamw8bit", "state1"), ("adamw8bit", "absmax1"), ("adafactor", "exp_avg_sq_row"), ("adafactor", "step")]
NEEDED += [("lion", "exp_avg"), ("prodigy", "exp_avg"), ("prodigy", "d"), ("came", "exp_avg_res_row")]
NEEDED += [("schedule-free", "z"), ("schedule-free", "weight_sum"), ("schedule-free", "@point")]


@pytest.mark.parametrize(("name", "part"), NEEDED)
def test_memory_with_a_part_spoiled_goes_elsewhere(name, part, tmp_path):
    """Otherwise the test above would prove nothing."""
    straight = fresh()
    opt = optim.optimizer(straight, config(optimizer=name))
    stepped(opt, straight, range(STEPS))
    kept = kept_and_read(opt, tmp_path)
    assert any(key.endswith(f"/{part}") for key in kept)
    spoiled = {key: (-t if t.dim() else t + t.abs() + 1) if key.endswith(f"/{part}") else t for key, t in kept.items()}
    weights = [weight.detach().clone().requires_grad_() for weight in straight]
    stepped(opt, straight, range(STEPS, STEPS + 3))
    other = optim.optimizer(weights, config(optimizer=name))
    optim.load_state_tensors(other, list(SHAPES), spoiled)
    stepped(other, weights, range(STEPS, STEPS + 3))
    assert any(not torch.equal(one, two) for one, two in zip(straight, weights, strict=True))


def test_memory_of_two_groups_goes_to_each_its_own(tmp_path):
    def made(weights):
        return optim.optimizer([{"params": weights[:1], "weight_decay": 0.5}, {"params": weights[1:]}], config(optimizer="prodigy"))

    straight = fresh()
    opt = made(straight)
    stepped(opt, straight, range(STEPS))
    kept = kept_and_read(opt, tmp_path)
    assert {"@0/d", "@1/d", "@0/d_numerator"} <= kept.keys()
    other = made([weight.detach().clone().requires_grad_() for weight in straight])
    optim.load_state_tensors(other, list(SHAPES), kept)
    assert [group["d"] for group in other.param_groups] == [group["d"] for group in opt.param_groups]
    assert type(other.param_groups[0]["step"]) is int


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_comes_down(name):
    """Least squares from afar: each is given the rate its kind wants."""
    generator = torch.Generator().manual_seed(1)
    matrix, goal = torch.randn(64, 64, generator=generator), torch.randn(64, 8, generator=generator)
    weight = torch.zeros(64, 8, requires_grad=True)
    rate = {"prodigy": 1.0, "lion": 0.003}.get(name, 0.03)
    opt = optim.optimizer([weight], config(optimizer=name, weight_decay=0.0).model_copy(update={"learning_rate": rate}))
    losses = []
    for _ in range(150):
        opt.zero_grad()
        loss = (matrix @ weight / 8 - goal).square().mean()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    with optim.given(opt):
        assert (matrix @ weight.detach() / 8 - goal).square().mean() < 0.6 * losses[0]


def test_what_is_given_by_a_schedule_free_run_is_its_average_and_training_goes_on_from_its_point():
    """Averaged iterate x of arXiv 2405.15682: with weights of equal size, the mean of all z; what trains is between x and z."""
    weights = [torch.zeros(4, requires_grad=True)]
    opt = optim.optimizer(weights, config(optimizer="schedule-free", weight_decay=0.0))
    states = []
    for i in range(4):
        weights[0].grad = torch.tensor([1.0, -1.0, 0.5, 2.0]) * (i + 1)
        opt.step()
        states.append(opt.state[weights[0]]["z"].clone())
    before = weights[0].detach().clone()
    with optim.given(opt):
        average = weights[0].detach().clone()
        torch.testing.assert_close(average, torch.stack(states).mean(0))
    assert torch.equal(weights[0], before)
    torch.testing.assert_close(before, 0.9 * average + 0.1 * states[-1])


def test_options_reach_the_optimizer_and_unknown_ones_are_refused():
    opt = optim.optimizer(fresh(), config(optimizer_options="betas=0.8,0.95 eps=1e-6"))
    assert opt.defaults["betas"] == (0.8, 0.95) and opt.defaults["eps"] == 1e-6
    prodigy = optim.optimizer(fresh(), config(optimizer="prodigy", optimizer_options=["d_coef=0.5", "safeguard_warmup=off"]))
    assert prodigy.defaults["d_coef"] == 0.5 and prodigy.defaults["safeguard_warmup"] is False
    with pytest.raises(SettingsError, match=r"'dcoef=2': prodigy has no such option; did you mean 'd_coef'\?"):
        optim.check(config(optimizer="prodigy", optimizer_options="dcoef=2"))
    with pytest.raises(SettingsError, match="adamw has no such option"):
        optim.check(config(optimizer_options="lr=3"))
    with pytest.raises(SettingsError, match="'many' is no number"):
        optim.check(config(optimizer_options="eps=many"))
    with pytest.raises(SettingsError, match="lion refuses them"):
        optim.optimizer(fresh(), config(optimizer="lion", optimizer_options="betas=2,0.9"))
    with pytest.raises(ValueError, match="is not KEY=VALUE"):
        config(optimizer_options="eps")


def test_an_optimizer_whose_package_is_missing_names_it(monkeypatch):
    monkeypatch.setattr(optimization, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="pip install bitsandbytes"):
        optim.check(config(optimizer="adamw8bit"))


def test_memory_of_unknown_parameters_is_refused():
    opt = optim.optimizer([torch.ones(1, requires_grad=True)], config())
    with pytest.raises(KeyError):
        optim.load_state_tensors(opt, ["a"], {"b/exp_avg": torch.zeros(1)})
