"""A picture's own text is enough to draw it again: random settings -> picture -> its settings -> the same file, byte for byte."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from studio.config import GenerateConfig, build
from studio.events import Image as Drawn
from studio.families.base import Components
from studio.generation import files
from studio.generation.sampler import generate
from studio.lora.adapter import Adapter
from tests.generation.conftest import BASES, Asked, adapter

WORDS = ("cat face", "a (red:1.3) lighthouse, [dark]", "donut\nand tea", "", "snow BREAK fox")


def settings(draw: random.Random, c: Components, names: list[str], sources: dict[str, Path]) -> dict[str, Any]:
    """Settings of any mode, stack, sampler and file."""
    found: dict[str, Any] = {
        "base": c.base.name,
        "prompt": draw.choice(WORDS),
        "negative_prompt": draw.choice(("", "yellow, blurry")),
        "loras": [{"name": name, "weight": round(draw.uniform(-1, 1.5), 3)} for name in draw.sample(names, draw.randint(0, len(names)))],
        "seed": draw.randrange(2**40),
        "steps": draw.randint(1, 5),
        "guidance": draw.choice((1.0, 3.5, 6.25)),
        "width": 64,
        "height": draw.choice((64, 96)),
        "sampler": draw.choice([*c.facts.samplers, None]),
        "guidance_rescale": draw.choice((0.0, 0.7)),
        "format": draw.choice(("png", "jpeg", "webp")),
        "quality": draw.choice((80, 100)),
        "live_preview": 0,
    }
    if not c.facts.negative_prompts:
        found["true_cfg"] = draw.choice((None, 2.0))
    if draw.random() < 0.4:
        found |= {"init_image": sources["init_image"].name, "strength": draw.choice((0.0, 0.4, 1.0))}
        found |= {"mask": sources["mask"].name, "mask_blur": draw.randint(0, 9)} if draw.random() < 0.5 else {}
    if draw.random() < 0.3:
        found |= {"variation_seed": draw.randrange(2**40), "variation_strength": 0.2}
    if draw.random() < 0.3:
        found |= {"hires_scale": 1.5, "hires_strength": 0.4, "hires_steps": draw.choice((None, 2))}
    if draw.random() < 0.2:
        found |= {"upscale": 1.5, "upscale_strength": 0.5, "tile": 64, "tile_overlap": 16}
    return found


def drawn(c: Components, folder: Path, config: GenerateConfig, library: dict[str, Adapter], sources: dict[str, Path]) -> Path:
    rows = [(library[row.name], row.weight) for row in config.loras]
    given = {name: sources[name] for name in ("init_image", "mask") if getattr(config, name)}
    events = generate(c, rows, config, folder, requests=Asked(), names=[row.name for row in config.loras], files=given)
    return folder / next(event.path for event in events if isinstance(event, Drawn))


def again(loaded: Callable[[str], Components], folder: Path, number: int) -> None:
    draw = random.Random(number)
    c = loaded(BASES[number % 2])
    library = {f"lora-{i}": adapter(c, i, (".attn",) if i else ("text_model", ".attn")) for i in range(3)}
    sources = {"init_image": folder / "start.png", "mask": folder / "mask.png"}
    Image.linear_gradient("L").convert("RGB").resize((80, 64)).save(sources["init_image"])
    Image.radial_gradient("L").save(sources["mask"])
    config = build(GenerateConfig, settings(draw, c, list(library), sources))
    first = drawn(c, folder / "first", config, library, sources)
    found = files.load(first)
    assert found.exact
    chosen = config.model_dump(include=config.model_fields_set, exclude_none=True) | {"loras": tuple(row.model_dump() for row in config.loras)}
    assert found.config.model_dump(include=set(chosen)) == chosen, "what is left to the base is filled in, all else is as it was chosen"
    by_hash = {one.metadata["sshs_model_hash"][:12]: one for one in library.values()}
    recalled = {row.name: by_hash[found.hashes[row.name]] for row in found.config.loras}
    drawn(c, folder / "between", build(GenerateConfig, {"base": c.base.name, "steps": 1, "width": 64, "height": 64, "seed": 1}), {}, {})
    second = drawn(c, folder / "second", found.config, recalled, sources)
    assert first.suffix == second.suffix and first.read_bytes() == second.read_bytes(), config


CI = (0, 1, 3, 4, 5, 7, 12, 17)  # together they have every setting, mode and kind of file


@pytest.mark.parametrize("number", CI)
def test_random_settings_are_recalled_and_drawn_again_byte_for_byte(loaded: Callable[[str], Components], tmp_path: Path, number: int) -> None:
    again(loaded, tmp_path, number)


@pytest.mark.long
@pytest.mark.parametrize("number", [number for number in range(58) if number not in CI])
def test_fifty_random_settings_are_recalled_and_drawn_again_byte_for_byte(loaded: Callable[[str], Components], tmp_path: Path, number: int) -> None:
    again(loaded, tmp_path, number)
