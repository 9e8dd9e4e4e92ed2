"""SDXL: the same numbers as diffusers' own pipeline."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from studio.families import get, sources
from studio.families.base import Components
from studio.families.sdxl import SDXL

CAPTIONS = ["cat face", "a donut on a blue background"]


def test_captions_are_encoded_as_the_pipeline_does(sdxl: Components) -> None:
    ours = SDXL.encode_captions(sdxl, CAPTIONS)
    prompt, _, pooled, _ = SDXL.pipeline(sdxl).encode_prompt(CAPTIONS, do_classifier_free_guidance=False)  # type: ignore[attr-defined]
    assert torch.equal(ours["prompt_embeds"], prompt)
    assert torch.equal(ours["pooled_prompt_embeds"], pooled)


def test_a_caption_of_any_length_is_encoded(sdxl: Components) -> None:
    assert SDXL.encode_captions(sdxl, ["", "cat " * 500])["prompt_embeds"].shape[:2] == (2, 77)


def test_images_become_the_latents_that_decode_to_them(sdxl: Components) -> None:
    ramp = torch.linspace(-1, 1, 64).expand(2, 3, 64, 64)
    latents = SDXL.encode_images(sdxl, ramp)
    assert latents.shape == (2, 16, 8, 8) and latents.dtype == torch.float32
    assert torch.equal(latents, SDXL.encode_images(sdxl, ramp)), "encoding is deterministic"
    vae = sdxl.parts["vae"]
    assert (vae.decode(latents / vae.config.scaling_factor).sample - ramp).abs().mean() < 0.1


def test_the_prediction_is_the_pipelines_own_denoiser_call(sdxl: Components) -> None:
    """Every call that the pipeline makes to its U-Net is repeated through predict, size conditions by diffusers' `_get_add_time_ids`."""
    pipe = SDXL.pipeline(sdxl)
    pipe.set_progress_bar_config(disable=True)
    calls = []
    handle = sdxl.denoiser.register_forward_hook(lambda module, args, kwargs, output: calls.append((args, kwargs, output)), with_kwargs=True)
    size = {"original_size": (200, 300), "crops_coords_top_left": (8, 24), "target_size": (128, 96)}
    pipe(CAPTIONS[0], height=128, width=96, num_inference_steps=2, guidance_scale=1.0, output_type="latent", **size)  # type: ignore[operator]
    handle.remove()
    cond = SDXL.encode_captions(sdxl, CAPTIONS[:1])
    assert len(calls) == 2
    for args, kwargs, output in calls:
        sizes = torch.tensor([[200, 300, 8, 24, 128, 96]])
        assert torch.equal(kwargs["added_cond_kwargs"]["time_ids"], sizes.float())
        ours = SDXL.predict(sdxl, args[0], args[1].expand(1), cond, sizes)
        assert torch.allclose(ours, output[0], atol=1e-6)


def test_each_picture_of_a_batch_has_its_own_size_and_timestep(sdxl: Components) -> None:
    cond = SDXL.encode_captions(sdxl, CAPTIONS)
    noisy = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    sizes = torch.tensor([[128, 128, 0, 0, 128, 128], [400, 128, 20, 0, 128, 64]])
    timesteps = torch.tensor([900.0, 100.0])
    both = SDXL.predict(sdxl, noisy, timesteps, cond, sizes)
    for i in range(2):
        alone = SDXL.predict(sdxl, noisy[i : i + 1], timesteps[i : i + 1], {key: value[i : i + 1] for key, value in cond.items()}, sizes[i : i + 1])
        assert torch.allclose(both[i : i + 1], alone, atol=2e-5)
    other = SDXL.predict(sdxl, noisy, timesteps, cond, sizes.flip(0))
    assert not torch.allclose(both, other, atol=1e-4), "sizes matter"


def test_an_empty_caption_is_zeros_where_the_base_draws_away_from_zeros(sdxl: Components) -> None:
    """What diffusers draws away from without a negative prompt is what a dropped caption trains; the other captions of a batch stay as they are."""
    captions = [CAPTIONS[0], "", "  "]
    as_read = SDXL.encode_captions(sdxl, captions)
    assert bool(as_read["prompt_embeds"][1].any()) and not sdxl.parts["force_zeros_for_empty_prompt"]
    sdxl.parts["force_zeros_for_empty_prompt"] = True
    try:
        found = SDXL.encode_captions(sdxl, captions)
        pipe = SDXL.pipeline(sdxl)
        pipe.register_to_config(force_zeros_for_empty_prompt=True)
        positive, negative, pooled, negative_pooled = pipe.encode_prompt(CAPTIONS[0], device="cpu")  # type: ignore[attr-defined]
    finally:
        sdxl.parts["force_zeros_for_empty_prompt"] = False
    for name, said, unsaid in (("prompt_embeds", positive, negative), ("pooled_prompt_embeds", pooled, negative_pooled)):
        assert torch.allclose(found[name][0], said[0], atol=1e-5) and torch.equal(found[name][0], as_read[name][0])
        assert torch.equal(found[name][1], unsaid[0]) and torch.equal(found[name][2], unsaid[0]) and not bool(unsaid.any())


def test_parts_load_alone() -> None:
    base = sources.find("demo-sdxl")
    c = SDXL.load(base, ("text",), torch.float32, torch.device("cpu"))
    assert set(c.parts) == {"scheduler", "force_zeros_for_empty_prompt", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"}
    c = SDXL.load(base, ("denoiser",), torch.bfloat16, torch.device("cpu"))
    assert {p.dtype for p in c.denoiser.parameters()} == {torch.bfloat16} and not any(p.requires_grad for p in c.denoiser.parameters())


@pytest.mark.parametrize("name", ["demo-sdxl", "demo-flux"])
def test_the_pipeline_draws_in_half_precision_with_a_vae_in_fp32(name: str) -> None:
    base = sources.find(name)
    family = get(base.family)
    c = family.load(base, ("denoiser", "vae", "text"), torch.bfloat16, torch.device("cpu"))
    assert c.parts["vae"].dtype == torch.float32
    pipe = family.pipeline(c)
    pipe.set_progress_bar_config(disable=True)
    more = {"max_sequence_length": 64} if "text_tokens" in base.habits else {}
    image = pipe("cat face", height=64, width=64, num_inference_steps=2, **more).images[0]  # type: ignore[operator]
    assert image.size == (64, 64)


def test_v_prediction_is_read_from_the_scheduler(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    shutil.copytree(sources.find("demo-sdxl").path, folder, copy_function=shutil.copyfile)
    config = folder / "scheduler" / "scheduler_config.json"
    config.chmod(0o644)
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": "v_prediction"}))
    base = sources.identify(folder)
    assert base.habits["objective"] == "v"
    assert SDXL.load(base, (), torch.float32, torch.device("cpu")).objective == "v"
    assert SDXL.load(sources.find("demo-sdxl"), (), torch.float32, torch.device("cpu")).objective == "epsilon"
