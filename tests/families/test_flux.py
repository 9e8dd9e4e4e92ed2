"""FLUX.1: the same numbers as diffusers' own pipeline."""

import dataclasses

import torch
from diffusers import FluxPipeline

from studio.families.base import Components
from studio.families.flux import FLUX, pack, positions, text_tokens, unpack

CAPTIONS = ["cat face", "a donut on a blue background"]


def test_captions_are_encoded_as_the_pipeline_does(flux: Components) -> None:
    ours = FLUX.encode_captions(flux, CAPTIONS)
    prompt, pooled, _ = FLUX.pipeline(flux).encode_prompt(CAPTIONS, None, max_sequence_length=64)  # type: ignore[attr-defined]
    assert torch.equal(ours["prompt_embeds"], prompt)
    assert torch.equal(ours["pooled_prompt_embeds"], pooled)


def test_packing_is_that_of_the_pipeline_and_undone_by_unpacking() -> None:
    latents = torch.randn(2, 16, 6, 10)
    packed = pack(latents)
    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 2, 16, 6, 10))
    assert torch.equal(unpack(packed, 6, 10), latents)
    assert torch.equal(positions(3, 5), FluxPipeline._prepare_latent_image_ids(1, 3, 5, torch.device("cpu"), torch.float32))


def test_latents_use_shift_and_scale_of_the_vae(flux: Components) -> None:
    pixels = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    plain = FLUX.encode_images(flux, pixels)
    vae = flux.parts["vae"]
    before = vae.config.scaling_factor, vae.config.shift_factor
    try:
        vae.register_to_config(scaling_factor=0.3611, shift_factor=0.1159)
        assert torch.allclose(FLUX.encode_images(flux, pixels), (plain - 0.1159) * 0.3611)
    finally:
        vae.register_to_config(scaling_factor=before[0], shift_factor=before[1])


def test_the_prediction_is_the_pipelines_own_denoiser_call(flux: Components) -> None:
    """Guidance is 1.0, the value of training, so the pipeline is asked for that too."""
    pipe = FLUX.pipeline(flux)
    pipe.set_progress_bar_config(disable=True)
    calls = []
    handle = flux.denoiser.register_forward_hook(lambda module, args, kwargs, output: calls.append((kwargs, output)), with_kwargs=True)
    pipe(CAPTIONS[0], height=128, width=96, num_inference_steps=2, guidance_scale=1.0, max_sequence_length=64, output_type="latent")  # type: ignore[operator]
    handle.remove()
    cond = FLUX.encode_captions(flux, CAPTIONS[:1])
    assert len(calls) == 2
    for kwargs, output in calls:
        noisy = unpack(kwargs["hidden_states"], 16, 12)
        ours = FLUX.predict(flux, noisy, kwargs["timestep"] * 1000, cond, torch.zeros(1, 6))
        assert torch.allclose(pack(ours), output[0], atol=1e-5)


def test_a_base_without_guidance_embedding_is_schnell(flux: Components) -> None:
    guided = FLUX.recognise_file(
        {"double_blocks.0.img_attn.qkv.weight": (1,), "single_blocks.0.linear1.weight": (1,), "img_in.weight": (1,), "guidance_in.in_layer.weight": (1,)}
    )
    plain = FLUX.recognise_file({"double_blocks.0.img_attn.qkv.weight": (1,), "single_blocks.0.linear1.weight": (1,), "img_in.weight": (1,)})
    assert guided is not None and guided["text_tokens"] == 512
    assert plain is not None and plain["text_tokens"] == 256 and plain["generate"]["steps"] == 4
    assert plain["modelspec"] == "flux-1-schnell/lora"
    assert text_tokens(dataclasses.replace(flux.base, habits=plain)) == 256
    assert text_tokens(dataclasses.replace(flux.base, habits={})) == 512


def test_schnell_predicts_without_guidance(flux: Components) -> None:
    from diffusers import FluxTransformer2DModel

    config = {**flux.denoiser.config, "guidance_embeds": False, "num_layers": 1, "num_single_layers": 1}  # type: ignore[dict-item]
    c = dataclasses.replace(flux, parts={**flux.parts, "transformer": FluxTransformer2DModel.from_config(config)})
    assert FLUX.predict(c, torch.randn(1, 16, 8, 8), torch.tensor([500.0]), FLUX.encode_captions(c, ["cat"]), torch.zeros(1, 6)).shape == (1, 16, 8, 8)
