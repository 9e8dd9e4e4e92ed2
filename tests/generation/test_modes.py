"""Every way to make a picture, held against diffusers' own pipelines and against what must not change."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from studio.config import GenerateConfig, build
from studio.errors import Cancelled, SettingsError
from studio.events import Image as Drawn
from studio.events import Preview, Started, Step, Warned
from studio.families import FAMILIES
from studio.families.base import Components
from studio.generation import denoise, modes, pictures, previews
from studio.generation.sampler import generate
from tests.generation.conftest import Asked

SIZE = (64, 64)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A picture of colour fields, and a mask whose right half is white."""
    image = Image.new("RGB", SIZE, (40, 90, 160))
    ImageDraw.Draw(image).ellipse((12, 16, 50, 54), fill=(240, 200, 40))
    mask = Image.new("L", SIZE, 0)
    mask.paste(255, (32, 0, 64, 64))
    found = {"init_image": tmp_path / "init.png", "mask": tmp_path / "mask.png"}
    image.save(found["init_image"])
    mask.save(found["mask"])
    return found


def events(c: Components, folder: Path, files: dict[str, Path] | None = None, asked: Asked | None = None, **values: Any) -> list:
    usual = {"base": c.base.name, "prompt": "cat face", "seed": 5, "steps": 4, "width": SIZE[0], "height": SIZE[1], "live_preview": 0}
    given = {name: str(path) for name, path in (files or {}).items()}
    config = build(GenerateConfig, usual | given | values)
    return list(generate(c, [], config, folder, requests=asked or Asked(), names=[], files=files or {}))


def draw(c: Components, folder: Path, files: dict[str, Path] | None = None, **values: Any) -> np.ndarray:
    """(H, W, 3) of the one picture."""
    path = next(event.path for event in events(c, folder, files, **values) if isinstance(event, Drawn))
    return np.asarray(Image.open(folder / path), dtype=np.int16)


@pytest.mark.parametrize(("base", "sampler"), [("demo-sdxl", "Euler"), ("demo-sdxl", "Euler a"), ("demo-flux", "Euler")])
def test_the_loop_draws_what_diffusers_own_pipeline_draws(loaded: Callable[[str], Components], tmp_path: Path, base: str, sampler: str) -> None:
    c = loaded(base)
    family = FAMILIES[c.facts.name]
    pipeline: Any = family.pipeline(c)
    config = build(GenerateConfig, {"base": c.base.name, "prompt": "cat face", "seed": 5, "steps": 4, "width": 64, "height": 64, "guidance": 3.5})
    schedule = modes.passes(c, config).all[0].schedule(c, config.model_copy(update={"sampler": sampler}))
    schedule.sampler.set_begin_index(None)
    pipeline.scheduler = schedule.sampler
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    noise = modes.noise_of(c, config, SIZE, generator)
    pack = getattr(pipeline, "_pack_latents", None)
    latents = noise if pack is None else pack(noise, 1, 16, *noise.shape[-2:])
    cond = family.encode_captions(c, ["cat face"])
    if c.facts.negative_prompts:
        empty = family.encode_captions(c, [""])
        zeros = c.parts["force_zeros_for_empty_prompt"]
        cond |= {f"negative_{key}": torch.zeros_like(value) if zeros else empty[key] for key, value in cond.items()}
    with torch.no_grad():
        theirs = pipeline(**cond, width=64, height=64, num_inference_steps=4, guidance_scale=3.5, latents=latents, generator=generator, output_type="np")
    ours = draw(c, tmp_path, guidance=3.5, sampler=sampler)
    assert np.abs(ours - (theirs.images[0] * 255).round()).max() <= 1


def test_without_a_negative_prompt_a_base_draws_away_from_what_a_dropped_caption_trained(loaded) -> None:
    """Zeros, text and pooled text, where the base says so; what the empty text encodes to, where it does not; a negative prompt is always read."""
    from studio import families
    from studio.generation.conditioning import guide

    c = loaded("demo-sdxl")
    config = GenerateConfig(base="demo-sdxl", prompt="cat face", guidance=4.0)
    for zeros in (True, False):
        c.parts["force_zeros_for_empty_prompt"] = zeros
        try:
            away = guide(c, "cat face", config, "").unwanted
            named = guide(c, "cat face", config.model_copy(update={"negative_prompt": "dog"}), "").unwanted
            trained = families.get("sdxl").encode_captions(c, [""])
        finally:
            c.parts["force_zeros_for_empty_prompt"] = False
        assert away is not None and named is not None
        assert {name: bool(value.any()) for name, value in away.items()} == dict.fromkeys(trained, not zeros)
        assert all(torch.equal(away[name], trained[name]) for name in trained)
        assert all(bool(value.any()) for value in named.values())


def test_strength_leads_from_the_picture_to_a_new_one(c: Components, tmp_path: Path, files: dict[str, Path]) -> None:
    start = {"init_image": files["init_image"]}
    own = np.asarray(Image.open(files["init_image"]), dtype=np.int16)
    drawn = [draw(c, tmp_path / str(s), start, strength=s, steps=8) for s in (0.0, 0.15, 0.5, 1.0)]
    assert np.array_equal(drawn[0], own), "strength 0 keeps every bit"
    assert np.array_equal(drawn[3], draw(c, tmp_path / "noise", steps=8)), "strength 1 forgets the picture"
    near, far = (np.abs(one - own).mean() for one in drawn[1:3])
    assert 0 < near < far


def test_only_the_steps_of_the_strength_are_run_and_counted(c: Components, tmp_path: Path, files: dict[str, Path]) -> None:
    found = events(c, tmp_path, {"init_image": files["init_image"]}, strength=0.5, steps=8, hires_scale=1.5, hires_strength=0.25, count=2)
    assert [event.step for event in found if isinstance(event, Step)] == list(range(1, 13))
    assert next(event.total for event in found if isinstance(event, Started)) == 2 * (4 + 2)


def test_outside_the_mask_every_bit_stays_and_inside_it_is_drawn(c: Components, tmp_path: Path, files: dict[str, Path]) -> None:
    own = np.asarray(Image.open(files["init_image"]), dtype=np.int16)
    drawn = draw(c, tmp_path, files, strength=1.0, mask_blur=8)
    assert np.array_equal(drawn[:, :20], own[:, :20]) and np.abs(drawn[:, 48:] - own[:, 48:]).mean() > 4
    files["mask"].write_bytes(b"")
    Image.new("L", SIZE, 255).save(files["mask"])
    white = draw(c, tmp_path / "white", files, strength=0.5)
    assert np.array_equal(white, draw(c, tmp_path / "without", {"init_image": files["init_image"]}, strength=0.5))
    Image.new("L", SIZE, 0).save(files["mask"])
    with pytest.raises(SettingsError, match="nothing in it is white"):
        draw(c, tmp_path / "black", files)


def test_a_picture_that_nobody_named_is_an_error_not_a_picture_from_noise(c: Components, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="init_image 'gone': there is no such picture"):
        draw(c, tmp_path, init_image="gone")
    with pytest.raises(SettingsError, match="mask says where"):
        build(GenerateConfig, {"mask": "m.png"})


def test_hires_draws_the_same_picture_larger(c: Components, tmp_path: Path) -> None:
    small, large, plain = (
        draw(c, tmp_path / str(i), **v) for i, v in enumerate(({}, {"hires_scale": 2, "hires_strength": 0.3}, {"hires_scale": 2, "hires_strength": 0}))
    )
    assert large.shape == (128, 128, 3)
    enlarged = np.asarray(Image.fromarray(small.astype("uint8")).resize((128, 128), Image.Resampling.LANCZOS), dtype=np.int16)
    assert np.array_equal(plain, enlarged), "at strength 0 nothing is drawn anew"
    assert 0 < np.abs(large - enlarged).mean() < 40


def test_tiles_enlarge_a_picture_beyond_what_is_drawn_in_one_piece(c: Components, tmp_path: Path, files: dict[str, Path]) -> None:
    start = {"init_image": files["init_image"]}
    drawn = draw(c, tmp_path, start, strength=0, upscale=2, upscale_strength=0.25, tile=64, tile_overlap=16)
    own = Image.open(files["init_image"]).resize((128, 128), Image.Resampling.LANCZOS)
    assert drawn.shape == (128, 128, 3)
    difference = np.abs(drawn - np.asarray(own, dtype=np.int16))
    assert 0 < difference.mean() < 60
    untouched = draw(c, tmp_path / "plain", start, strength=0, upscale=2, upscale_strength=0, tile=64, tile_overlap=16)
    assert np.array_equal(untouched, np.asarray(own))
    with pytest.raises(SettingsError, match="tile_overlap 64 leaves nothing"):
        draw(c, tmp_path, start, upscale=2, tile=64, tile_overlap=64)


@given(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.integers(2, 12), st.integers(0, 80))
def test_tiles_cover_every_pixel_and_share_their_overlap(blocks: tuple[int, int], side: int, overlap: int) -> None:
    multiple = 8
    size = (blocks[0] * multiple, blocks[1] * multiple)
    if -(-overlap // multiple) >= side:
        with pytest.raises(SettingsError, match="leaves nothing"):
            pictures.tiles(size, side * multiple, overlap, multiple)
        return
    found = pictures.tiles(size, side * multiple, overlap, multiple)
    covered = np.zeros(size[::-1], dtype=int)
    for tile in found:
        assert tile.left % multiple == tile.top % multiple == 0
        covered[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] += 1
    assert covered.min() == 1 or covered.min() > 1
    for places, length in (({t.left for t in found}, size[0]), ({t.top for t in found}, size[1])):
        row = sorted(places)
        assert all(b - a <= min(length, side * multiple) - overlap for a, b in itertools.pairwise(row))


def test_tiles_that_nobody_redrew_blend_back_into_the_picture() -> None:
    image = torch.rand(1, 3, 96, 120, generator=torch.Generator().manual_seed(1)) * 2 - 1
    blend = pictures.Blend((120, 96))
    for tile in pictures.tiles((120, 96), 48, 16, 8):
        blend.add(tile, image[..., tile.top : tile.top + tile.height, tile.left : tile.left + tile.width], 16)
    assert torch.allclose(blend.result(), image, atol=1e-6)


def test_a_variation_goes_from_one_seed_to_the_other(c: Components, tmp_path: Path) -> None:
    here, little, there = (draw(c, tmp_path / str(s), variation_seed=77, variation_strength=s) for s in (0.0, 0.1, 1.0))
    assert np.array_equal(here, draw(c, tmp_path / "seed")) and np.array_equal(there, draw(c, tmp_path / "other", seed=77))
    assert 0 < np.abs(little - here).mean() < np.abs(there - here).mean()


def test_noise_between_two_seeds_is_as_loud_as_noise_is() -> None:
    a, b = (torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    mixed = modes.slerp(a, b, 0.5)
    assert abs(float(mixed.std()) - 1) < 0.05 < abs(float(torch.lerp(a, b, 0.5).std()) - 1)
    assert torch.allclose(modes.slerp(a, a, 0.3), a, atol=1e-3)


def test_true_cfg_lets_a_distilled_base_draw_away_from_a_prompt(c: Components, tmp_path: Path) -> None:
    plain = draw(c, tmp_path / "plain", negative_prompt="yellow")
    away = draw(c, tmp_path / "away", negative_prompt="yellow", true_cfg=3)
    warned = [event.message for event in events(c, tmp_path, true_cfg=3, steps=1) if isinstance(event, Warned)]
    if c.facts.negative_prompts:
        assert np.array_equal(plain, away) and "guidance does its work" in warned[0]
    else:
        assert not np.array_equal(plain, away) and not warned
        assert np.array_equal(plain, draw(c, tmp_path / "one", negative_prompt="yellow", true_cfg=1))


def test_rescaled_guidance_takes_excess_contrast_back(c: Components, tmp_path: Path) -> None:
    towards = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    mixed = denoise._rescaled(towards * 7, towards, 1.0)
    assert torch.allclose(mixed, towards, atol=1e-5) and torch.equal(denoise._rescaled(towards * 7, towards, 0.0), towards * 7)
    if c.facts.negative_prompts:
        assert not np.array_equal(draw(c, tmp_path, guidance=9), draw(c, tmp_path / "r", guidance=9, guidance_rescale=0.7))


def test_old_previews_are_forgotten_but_for_the_last_few(c: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(previews, "KEPT_SECONDS", 0.0)
    found = events(c, tmp_path, live_preview=1e-9, steps=6, width=128, height=128)
    shown = [Path(event.path).name for event in found if isinstance(event, Preview)]
    assert len(set(shown)) == 6 and sorted(path.name for path in tmp_path.glob("previews/*")) == shown[-previews.KEPT :]


def test_a_preview_shows_the_colours_of_the_picture_and_changes_none(c: Components, tmp_path: Path) -> None:
    found = events(c, tmp_path, live_preview=1e-9, steps=6, width=128, height=128)
    shown = [event for event in found if isinstance(event, Preview)]
    assert [event.step for event in shown] == list(range(1, 7))
    assert sorted(path.name for path in tmp_path.glob("previews/*")) == [Path(event.path).name for event in shown], "a page may still ask for them"
    path = next(event.path for event in found if isinstance(event, Drawn))
    assert Image.open(tmp_path / path).tobytes() == draw(c, tmp_path / "without", steps=6, width=128, height=128).astype("uint8").tobytes()
    image = pictures.pixels(Image.open(tmp_path / path).convert("RGB"))
    guess = previews.colours(c, FAMILIES[c.facts.name].encode_images(c, image))[0].flatten()
    small = torch.nn.functional.adaptive_avg_pool2d(image, (16, 16))[0].flatten()
    assert float(torch.corrcoef(torch.stack([guess, small]))[0, 1]) > 0.85
    shuffled = small[torch.randperm(len(small), generator=torch.Generator().manual_seed(0))]
    assert abs(float(torch.corrcoef(torch.stack([guess, shuffled]))[0, 1])) < 0.2


def test_the_clean_latents_of_a_step_come_nearer_to_the_picture(c: Components) -> None:
    config = build(GenerateConfig, {"base": c.base.name, "prompt": "cat face", "seed": 5, "steps": 8, "width": 128, "height": 128, "guidance": 3.5})
    from studio.generation import conditioning

    with torch.no_grad():
        guide = conditioning.guide(c, config.prompt, config, "")
        one = modes.passes(c, config).all[0]
        generator = torch.Generator().manual_seed(5)
        steps = denoise.denoise(c, guide, one.schedule(c, config), modes.noise_of(c, config, one.size, generator), generators=[generator])
        seen = []
        while True:
            try:
                seen.append(next(steps).estimate())
            except StopIteration as ended:
                last = ended.value
                break
    errors = [float((estimate - last).pow(2).mean()) for estimate in seen]
    assert errors[-1] < 1e-3 < errors[0] and errors[5] < errors[2] < errors[0] * 1.01


def test_a_cancel_ends_the_step_at_hand(c: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoise, "LOOK_SECONDS", 0.0)
    asked = Asked("cancel", 4)
    with pytest.raises(Cancelled, match="0 of 1 pictures"):
        events(c, tmp_path, asked=asked)
    assert asked.looks == 4, "between two blocks of the first step"
    assert not any(module._forward_pre_hooks for child in c.denoiser.children() if isinstance(child, torch.nn.ModuleList) for module in child)


def test_more_steps_than_a_sampler_can_take_is_said_in_a_line(c: Components, tmp_path: Path) -> None:
    if "TCD" in c.facts.samplers:
        with pytest.raises(SettingsError, match="sampler LCM cannot take 400 steps"):
            draw(c, tmp_path, sampler="LCM", steps=400)
    else:
        assert draw(c, tmp_path, sampler="LCM", steps=2).std() > 5
