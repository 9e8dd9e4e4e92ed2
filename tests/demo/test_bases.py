import random
from pathlib import Path

import pytest
import torch

from studio.demo import shapes, stages
from studio.demo.bases import STAGES
from studio.demo.optimise import Budget, rate_at
from studio.demo.renderer import Renderer, caption
from studio.demo.shapes import TINY
from studio.demo.sprites import FONT_PLACES, by_name, emojis, find_font
from studio.demo.stages import Recipe
from studio.demo.store import stored
from studio.errors import InputError

CPU = torch.device("cpu")
RECIPE = Recipe(batch=2, vae_batch=2, long_batch=1, bank=4, dtype=torch.float32)
TWO_STEPS = Budget(seconds=600, steps=2)

needs_font = pytest.mark.skipif(not any(Path(place).is_file() for place in FONT_PLACES), reason="the font Noto Color Emoji is not installed")


@pytest.fixture(scope="module")
def renderer():
    return Renderer(CPU, n_emojis=12)


@pytest.fixture(scope="module")
def built(renderer, tmp_path_factory):
    out = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)
    for build in STAGES.values():
        build(out, renderer, TINY, RECIPE, TWO_STEPS)
    return out


@needs_font
def test_two_steps_of_every_stage_make_folders_that_load_and_draw(built):
    from diffusers import FluxPipeline, StableDiffusionXLPipeline

    sdxl = StableDiffusionXLPipeline.from_pretrained(built / "demo-sdxl", torch_dtype=torch.float32)
    flux = FluxPipeline.from_pretrained(built / "demo-flux", torch_dtype=torch.float32)
    for pipeline, options in ((sdxl, {}), (flux, {"max_sequence_length": 64})):
        pipeline.set_progress_bar_config(disable=True)
        image = pipeline("a cat face", num_inference_steps=1, width=128, height=128, **options).images[0]
        assert image.size == (128, 128)
    weights = sdxl.unet.state_dict()
    assert {str(w.dtype) for w in weights.values()} == {"torch.float32"}


@needs_font
def test_the_second_stage_says_what_is_missing(renderer, tmp_path):
    with pytest.raises(InputError, match="vae is missing; train it first"):
        STAGES["sdxl"](tmp_path, renderer, TINY, RECIPE, TWO_STEPS)


@needs_font
def test_normalised_latents_have_no_mean_and_deviation_one_and_decode_to_the_same(renderer):
    torch.manual_seed(0)
    vae = shapes.vae(TINY).eval()
    pixels = renderer.draw(8)[0]
    with torch.no_grad():
        before = vae.decode(vae.encode(pixels).latent_dist.mean).sample
        torch.manual_seed(1)
        stages.normalise_latents(vae, renderer, 8)
        torch.manual_seed(1)
        latents = vae.encode(renderer.draw(8)[0]).latent_dist.mean
        after = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 1e-3
    assert (before - after).abs().max() < 1e-4


@needs_font
def test_pictures_show_what_their_captions_say(renderer):
    torch.manual_seed(3)
    pixels, scenes = renderer.draw(64)
    assert pixels.shape == (64, 3, 128, 128) and pixels.min() >= -1 and pixels.max() <= 1
    corner = (pixels[:, :, 0, 0] + 1) / 2
    assert (corner - renderer.colours[scenes.background]).abs().max() < 0.02
    for text, paper in zip(renderer.captions(scenes, random.Random(0)), scenes.background.tolist(), strict=True):
        assert ("background" in text) or paper == 0


def test_captions_follow_the_grammar_of_the_bases():
    rng = random.Random(0)
    owl, cup = by_name("owl"), by_name("cup of coffee")
    found = {caption(owl, None, "white", False, rng) for _ in range(200)} | {caption(owl, cup, "navy", True, rng) for _ in range(200)}
    assert {"owl", "an owl", "An owl on a white background", "a small owl next to a cup of coffee on a navy background"} <= found


def test_every_thing_has_one_name():
    names = [emoji.name for emoji in emojis()]
    assert len(names) == len(set(names)) > 600
    with pytest.raises(InputError, match="no emoji is called"):
        by_name("unheard of")


def test_a_missing_font_is_told_with_the_way_out(tmp_path):
    with pytest.raises(InputError, match="fonts-noto-color-emoji"):
        find_font(places=[str(tmp_path / "no.ttf")])


def test_matrices_are_stored_small_and_vectors_whole():
    matrix, vector = torch.linspace(-1, 1, 64).view(8, 8).half(), torch.linspace(-1, 1, 8).half()
    assert stored(matrix).dtype == torch.float8_e4m3fn
    assert (stored(matrix).float() - matrix.float()).abs().max() < 0.04
    assert stored(vector) is vector


def test_the_learning_rate_warms_up_holds_and_falls():
    rates = [rate_at(share, 1.0) for share in (0, 0.02, 0.3, 0.7, 1)]
    assert rates[0] < 0.01 and rates[1] == rates[2] == 1.0 and rates[2] > rates[3] > rates[4] > 0
