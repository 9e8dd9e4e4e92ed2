"""Claims about what is learned: closed forms, and agreement with the schedulers that draw."""

import math

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

from studio.config.training.objective import FLOW_ONLY, NOISE_ONLY
from studio.config.training.objective import Objective as Chosen
from studio.errors import BaseError, SettingsError
from studio.training.objective import Diffusion, Flow, alphas_cumprod, choose, dynamic_shift, mode, packed_tokens, shifted

SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
FLUX = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096, "shift": 3.0}
FLUX_DENOISER = {"in_channels": 64, "patch_size": 1}


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 5, 4, 8, 8, generator=generator)
    return latents, noise, torch.tensor([0.0, 0.1234, 0.5, 0.9, 0.9999999])


@pytest.mark.parametrize(("pixels", "shift"), [(512, 1.878), (640, 2.070), (768, 2.332), (1024, 3.158)])
def test_flux_shift_by_resolution(pixels, shift):
    latents = (16, pixels // 8, pixels // 8)
    goal = choose("flow", FLUX, FLUX_DENOISER, Chosen())
    assert goal.facts(latents)["flow_shift"] == pytest.approx(shift, abs=5e-4)


def test_packed_tokens_are_a_quarter_of_the_latents():
    assert packed_tokens((16, 128, 128), FLUX_DENOISER) == 4096
    assert packed_tokens((16, 128, 128), {"in_channels": 16, "patch_size": 2}) == 4096


@pytest.mark.parametrize("tokens", [256, 1024, 2304, 4096])
def test_dynamic_shift_is_that_of_the_drawing_scheduler(tokens):
    scheduler = FlowMatchEulerDiscreteScheduler(**FLUX)
    sigma = torch.linspace(0.01, 0.99, 9)
    theirs = scheduler.time_shift(calculate_shift(tokens), 1.0, sigma)
    torch.testing.assert_close(shifted(sigma, dynamic_shift(tokens, FLUX)), theirs)


def test_the_scheduler_decides_the_shift_and_the_setting_overrides_it():
    shape = (16, 16, 16)
    assert choose("flow", {"use_dynamic_shifting": False, "shift": 1.5}, FLUX_DENOISER, Chosen()).facts(shape)["flow_shift"] == 1.5
    assert choose("flow", FLUX, FLUX_DENOISER, Chosen(flow_shift=2.25)).facts(shape)["flow_shift"] == 2.25


def test_flow_mixes_linearly_and_aims_from_picture_to_noise(drawn):
    latents, noise, level = drawn
    found = Flow(lambda shape: 1.0).noised(latents, noise, level)
    sigma = (found.timesteps / 1000).view(-1, 1, 1, 1)
    torch.testing.assert_close(found.noisy, (1 - sigma) * latents + sigma * noise)
    torch.testing.assert_close(found.noisy - sigma * found.target, latents)
    assert torch.equal(found.weight, torch.ones(5))
    assert found.timesteps.min() >= 0 and found.timesteps.max() < 1000


def test_flow_levels_are_logit_normal_and_a_shift_means_more_noise():
    level = (torch.arange(100_000) + 0.5) / 100_000
    latents = torch.zeros(len(level), 1, 1, 1)
    plain, moved = (Flow(lambda shape, s=s: s).noised(latents, latents, level).timesteps.double() / 1000 for s in (1.0, 3.0))
    logit = torch.logit(plain)
    assert logit.mean().abs() < 1e-3
    assert logit.std() == pytest.approx(1.0, abs=1e-3)
    torch.testing.assert_close(torch.logit(moved) - logit, torch.full_like(logit, math.log(3.0)), atol=1e-3, rtol=0)
    assert moved.mean() > plain.mean() + 0.15


@pytest.mark.parametrize("kind", ["epsilon", "v"])
@pytest.mark.parametrize("zero", [False, True])
def test_diffusion_is_that_of_the_drawing_scheduler(drawn, kind, zero):
    latents, noise, level = drawn
    config = SDXL | {"rescale_betas_zero_snr": zero}
    theirs = DDPMScheduler(**config)
    steps = (level * 1000).long()
    found = Diffusion(kind, alphas_cumprod(config)).noised(latents, noise, level)
    assert found.timesteps.tolist() == [0, 123, 500, 900, 999]
    torch.testing.assert_close(found.noisy, theirs.add_noise(latents, noise, steps), atol=1e-5, rtol=1e-5)
    target = noise if kind == "epsilon" else theirs.get_velocity(latents, noise, steps)
    torch.testing.assert_close(found.target, target, atol=1e-5, rtol=1e-5)


def test_zero_terminal_rescaling_leaves_nothing_at_the_end():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    ours = alphas_cumprod(SDXL | {"rescale_betas_zero_snr": True})
    assert ours[-1] == 0
    torch.testing.assert_close(ours, torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "snr", "weight"),
    [("epsilon", 20.0, 0.25), ("epsilon", 5.0, 1.0), ("epsilon", 0.1, 1.0), ("epsilon", 0.0, 1.0), ("v", 20.0, 5 / 21), ("v", 4.0, 0.8), ("v", 0.0, 0.0)],
)
def test_min_snr_weights(kind, snr, weight):
    found = Diffusion(kind, alphas_cumprod(SDXL), gamma=5.0).weight(torch.tensor([snr]))
    assert found.item() == pytest.approx(weight)


def test_min_snr_counts_a_picture_error_the_same_for_both_predictions():
    """Weight times the error of each prediction equals min(snr, gamma) times the error of the clean picture."""
    kept = alphas_cumprod(SDXL)[torch.tensor([50, 400, 900])].double()
    snr = kept / (1 - kept)
    picture_error = 1.0
    epsilon_error = snr * picture_error  # noise = (noisy - sqrt(kept) picture) / sqrt(1 - kept)
    v_error = picture_error / (1 - kept)  # picture = sqrt(kept) noisy - sqrt(1 - kept) v
    capped = snr.clamp(max=5.0)
    for kind, error in (("epsilon", epsilon_error), ("v", v_error)):
        torch.testing.assert_close(Diffusion(kind, kept, 5.0).weight(snr) * error, capped * picture_error)


def test_without_gamma_every_level_weighs_the_same():
    assert torch.equal(Diffusion("v", alphas_cumprod(SDXL)).weight(torch.tensor([0.0, 9.0])), torch.ones(2))


@pytest.mark.parametrize("name", NOISE_ONLY)
def test_a_setting_for_noise_predicting_bases_is_refused_on_a_flow_base(name):
    values = {"min_snr_gamma": 5.0, "debiased": True, "noise_offset": 0.1, "pyramid_noise": 6, "pyramid_discount": 0.5, "zero_terminal_snr": True}
    with pytest.raises(SettingsError, match=f"^{name} .* is for noise-predicting bases, this is a flow base; leave {name}"):
        choose("flow", FLUX, FLUX_DENOISER, Chosen.model_validate({name: values[name]}))


@pytest.mark.parametrize("name", FLOW_ONLY)
def test_a_setting_for_flow_bases_is_refused_on_the_others(name):
    values = {"flow_shift": 3.0, "timestep_sampling": "mode", "timestep_mean": 1.0, "timestep_scale": 2.0, "mode_scale": 0.5}
    with pytest.raises(SettingsError, match=f"^{name} .* is for flow bases, this one predicts noise"):
        choose("v", SDXL, {}, Chosen.model_validate({name: values[name]}))


def test_zero_terminal_training_asks_for_velocity_and_ends_in_pure_noise():
    with pytest.raises(SettingsError, match="noise cannot be learned from pure noise"):
        choose("epsilon", SDXL, {}, Chosen(zero_terminal_snr=True))
    goal = choose("v", SDXL, {}, Chosen(zero_terminal_snr=True))
    latents, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    last = goal.noised(latents, noise, torch.tensor([0.9999]))
    assert last.snr.item() == 0 and torch.equal(last.noisy, noise)
    torch.testing.assert_close(last.target, -latents)


@pytest.mark.parametrize(
    ("kind", "snr", "weight"), [("epsilon", 4.0, 0.5), ("epsilon", 0.25, 2.0), ("epsilon", 1e6, 1e-3**0.5), ("v", 4.0, 0.4), ("v", 0.0, 0.0)]
)
def test_debiased_weights(kind, snr, weight):
    found = Diffusion(kind, alphas_cumprod(SDXL), debiased=True).weight(torch.tensor([snr]))
    assert found.item() == pytest.approx(weight)


def test_debiased_counts_a_picture_error_the_same_for_both_predictions():
    kept = alphas_cumprod(SDXL)[torch.tensor([50, 400, 900])].double()
    snr = kept / (1 - kept)
    for kind, error in (("epsilon", snr), ("v", 1 / (1 - kept))):
        torch.testing.assert_close(Diffusion(kind, kept, debiased=True).weight(snr) * error, snr.sqrt())


def test_two_loss_weights_at_once_are_refused():
    with pytest.raises(ValueError, match="name one of them"):
        Chosen(debiased=True, min_snr_gamma=5.0)


EVEN = (torch.arange(100_000) + 0.5) / 100_000


def sigmas(**values):
    latents = torch.zeros(len(EVEN), 1, 1, 1)
    return choose("flow", {}, {}, Chosen(**values)).noised(latents, latents, EVEN).timesteps.double() / 1000


def test_uniform_sampling_is_uniform_and_the_logit_normal_takes_mean_and_scale():
    torch.testing.assert_close(sigmas(timestep_sampling="uniform"), EVEN.double(), atol=1e-6, rtol=0)
    logit = torch.logit(sigmas(timestep_mean=-0.5, timestep_scale=2.0))
    assert logit.mean().item() == pytest.approx(-0.5, abs=5e-3) and logit.std().item() == pytest.approx(2.0, abs=2e-2)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.29, 1.75])
def test_mode_sampling_is_that_of_diffusers(scale):
    from diffusers.training_utils import compute_density_for_timestep_sampling

    generator = torch.Generator().manual_seed(3)
    uniform = torch.rand(64, generator=torch.Generator().manual_seed(3))
    theirs = compute_density_for_timestep_sampling("mode", 64, mode_scale=scale, generator=generator)
    torch.testing.assert_close(mode(uniform, scale).float(), theirs, atol=1e-5, rtol=0)


def test_logit_normal_has_the_density_of_diffusers_sampler():
    from diffusers.training_utils import compute_density_for_timestep_sampling

    theirs = compute_density_for_timestep_sampling("logit_normal", 100_000, logit_mean=0.3, logit_std=0.8, generator=torch.Generator().manual_seed(0))
    ours = sigmas(timestep_mean=0.3, timestep_scale=0.8)
    shares = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    torch.testing.assert_close(ours.quantile(shares), theirs.double().quantile(shares), atol=6e-3, rtol=0)


@pytest.mark.parametrize(("kind", "config"), [("epsilon", SDXL), ("v", SDXL), ("flow", {})])
def test_extra_noise_is_seen_and_not_told(drawn, kind, config):
    latents, noise, level = drawn
    goal = choose(kind, config, {}, Chosen())
    plain, disturbed = goal.noised(latents, noise, level), goal.noised(latents, noise, level, 0.1 * noise)
    assert torch.equal(plain.target, disturbed.target) and torch.equal(plain.timesteps, disturbed.timesteps)
    torch.testing.assert_close(disturbed.noisy, goal.noised(latents, 1.1 * noise, level).noisy)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(BaseError, match="squaredcos_cap_v2"):
        alphas_cumprod(SDXL | {"beta_schedule": "squaredcos_cap_v2"})
