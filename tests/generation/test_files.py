"""Settings in every kind of picture file, and what a foreign file cannot do."""

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from studio.config import GenerateConfig, LoraWeight
from studio.errors import ImageError, SettingsError
from studio.generation import files, infotext
from studio.generation.infotext import Model, Used
from tests.generation.test_infotext import CONFIG, HASH_A, civitai

KINDS = ("png", "jpeg", "webp")


def picture() -> Image.Image:
    return Image.linear_gradient("L").resize((64, 64)).convert("RGB")


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.text(max_size=60) | st.sampled_from(["猫 & <dog>", ']]> & "q"', "a\n\nNegative prompt: b"]), st.integers(1, 100))
def test_settings_come_back_exactly_from_every_kind_of_file(tmp_path_factory: pytest.TempPathFactory, kind: str, prompt: str, quality: int) -> None:
    loras = (LoraWeight(name="ink", weight=-0.25),)
    config = CONFIG.model_copy(update={"prompt": prompt, "format": kind, "quality": quality, "loras": loras})
    config = GenerateConfig(**config.model_dump())
    path = tmp_path_factory.getbasetemp() / f"one{files.SUFFIXES[kind]}"
    files.save(picture(), path, config, [Used("ink", -0.25, HASH_A)], Model("demo-sdxl"))
    found = files.load(path)
    assert found.exact and found.config == config and found.hashes == {"ink": HASH_A[:12]}


@pytest.mark.parametrize("kind", KINDS)
def test_the_a1111_text_stands_where_a1111_puts_it(tmp_path: Path, kind: str) -> None:
    config = CONFIG.model_copy(update={"format": kind})
    rows = [Used("ink", 0.8, HASH_A), Used("wash", 0.4, "ab" * 32)]
    files.save(picture(), tmp_path / "x", config, rows, Model("demo-sdxl"))
    with Image.open(tmp_path / "x") as image:
        assert image.format == kind.upper() and image.size == (64, 64)
        if kind == "png":
            text = image.info["parameters"]
        else:
            comment = image.getexif().get_ifd(0x8769)[0x9286]
            assert comment[:8] == b"UNICODE\0"
            text = comment[8:].decode("utf-16-be")
    assert text == infotext.write(config, rows, Model("demo-sdxl"))
    assert civitai(text)["loras"] == {"ink": (0.8, HASH_A[:12]), "wash": (0.4, "ab" * 6)}


def test_webp_of_full_quality_and_png_lose_nothing(tmp_path: Path) -> None:
    noisy = Image.effect_noise((64, 64), 80).convert("RGB")
    for kind, quality, same in (("png", 92, True), ("webp", 100, True), ("webp", 60, False), ("jpeg", 60, False)):
        files.save(noisy, tmp_path / kind, CONFIG.model_copy(update={"format": kind, "quality": quality}), [], Model("b"))
        assert (Image.open(tmp_path / kind).tobytes() == noisy.tobytes()) is same


def test_prompts_too_long_for_a_jpeg_are_refused_and_fit_elsewhere(tmp_path: Path) -> None:
    long = CONFIG.model_copy(update={"prompt": "猫" * 20_000, "negative_prompt": "犬" * 20_000, "format": "jpeg"})
    with pytest.raises(SettingsError, match="take webp or png"):
        files.check(long, [], Model("b"))
    webp = long.model_copy(update={"format": "webp"})
    files.save(picture(), tmp_path / "x.webp", webp, [], Model("b"))
    assert files.load(tmp_path / "x.webp").config == webp


@pytest.mark.parametrize(
    "packet",
    [
        f'<!DOCTYPE x [<!ENTITY a "b">]><x xmlns:s="{files.SPACE}"><s:lora_studio>&a;</s:lora_studio></x>',
        f'<x xmlns:s="{files.SPACE}"><s:lora_studio>',
        f'<x xmlns:s="{files.SPACE}"/>',
        "nothing",
    ],
)
def test_a_foreign_packet_carries_nothing(packet: str) -> None:
    buffer = io.BytesIO()
    picture().save(buffer, "WEBP", xmp=packet.encode())
    with pytest.raises(ImageError, match="carries no settings"):
        files.load(buffer.getvalue())
