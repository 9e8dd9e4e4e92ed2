"""The text in pictures, held against the rules of its strictest reader.

`civitai` below restates what Civitai does to a picture's text (civitai/civitai, src/utils/metadata/automatic.metadata.ts, and
get_image_resources.sql): details on the last line, special parts cut out first, tags by a narrow pattern, hashes joined by exact name.
"""

import json
import re
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from studio.config import GenerateConfig, LoraWeight
from studio.errors import ImageError, SettingsError
from studio.generation import files, infotext
from studio.generation.infotext import Model, Used

HASH_A, HASH_B = "0011aabbccddeeff" * 4, "feDCba9876543210" * 4
CONFIG = GenerateConfig(
    base="demo-sdxl", prompt="a cat, in a hat", negative_prompt="blurry: yes, dull", seed=7, steps=20, guidance=4.5, width=128, height=192, sampler="Euler a"
)


def civitai(text: str) -> dict:
    """{"loras": {name: (weight or None, hash or None)}, "model", "model_hash", "details"} as that reader sees it."""
    assert "Steps: " in text, "not seen as A1111 text"
    lines = text.split("\n")
    prompt_lines = [line for line in lines[:-1] if not line.startswith("Negative prompt: ")]
    line = lines[-1]
    assert line.startswith("Steps: ")
    cut = re.search(r", Hashes:\s*(\{[^}]+\})", line)
    hashes = json.loads(cut[1]) if cut else {}
    line = line.replace(cut[0], "") if cut else line
    details = {}
    for key, value in re.findall(r'\s*([A-Za-z][\w \-/]*):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', line):
        details[key] = {} if key == "Model" and value.startswith('"') else value.strip('"')
    for entry in details.get("Lora hashes", "").split(","):
        name, _, value = entry.strip().partition(":")
        if value:
            hashes[f"lora:{name}"] = value.strip()
    stored = {key.removeprefix("lora:"): value.lower() for key, value in hashes.items() if key.startswith("lora:") and value != "e3b0c44298fc"}
    weights = {name: float(weight) for _, name, weight in re.findall(r"<(lora|hypernet):([a-zA-Z0-9_.\-]+):([0-9.]+)>", "\n".join(prompt_lines))}
    both = {name: (weights.get(name), stored.get(name)) for name in {**weights, **stored}}
    return {"loras": both, "model": details.get("Model"), "model_hash": hashes.get("model"), "details": details}


def test_civitai_reads_the_hash_and_the_weight_of_every_lora() -> None:
    adapters = [Used("ink", 0.8, HASH_A), Used("/loras/wet wash.safetensors", 1.0, HASH_B)]
    found = civitai(infotext.write(CONFIG, adapters, Model("demo-sdxl", "0123456789")))
    assert found["loras"] == {"ink": (0.8, HASH_A[:12]), "wet-wash": (1.0, HASH_B[:12].lower())}
    assert (found["model"], found["model_hash"]) == ("demo-sdxl", "0123456789")


def test_the_civitai_reader_above_loses_what_it_is_known_to_lose() -> None:
    """Negative control: the traps our writer avoids are traps for this reader."""
    line = '\nSteps: 1, Sampler: x, Model: "sd_xl, base", Lora hashes: "my style: abc123def456"'
    assert civitai("a <lora:my style:0.8>" + line)["loras"] == {"my style": (None, "abc123def456")}
    assert civitai("a <lora:x:-0.5>" + line)["loras"]["my style"][0] is None
    assert civitai("a" + line)["model"] == {}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=20), st.floats(0.001, 10)), max_size=5),
    st.text(min_size=1, max_size=30),
)
def test_any_names_and_weights_survive_civitai(rows: list[tuple[str, float]], base: str) -> None:
    adapters = [Used(name, weight, f"{i + 1:02x}" * 32) for i, (name, weight) in enumerate(rows)]
    found = civitai(infotext.write(CONFIG, adapters, Model(base)))
    assert len(found["loras"]) == len(rows)
    for i, (name, weight) in enumerate(zip(infotext.stems([name for name, _ in rows]), (weight for _, weight in rows), strict=True)):
        read, value = found["loras"][name]
        assert read == pytest.approx(weight, abs=1e-6)
        assert value == (f"{i + 1:02x}" * 32)[:12]
    assert found["model"] is None or isinstance(found["model"], str)


def test_details_stand_in_a1111_order_and_are_quoted_as_there() -> None:
    text = infotext.write(CONFIG, [Used("ink", 0.8, HASH_A)], Model("demo-sdxl", "0123456789"))
    assert text.split("\n")[:2] == ["a cat, in a hat <lora:ink:0.8>", "Negative prompt: blurry: yes, dull"]
    assert re.fullmatch(
        r"Steps: 20, Sampler: Euler a, CFG scale: 4\.5, Seed: 7, Size: 128x192, Model hash: 0123456789, Model: demo-sdxl, "
        r'Lora hashes: "ink: 0011aabbccdd", Version: LoRA Studio [\d.]+, Hashes: \{"model": "0123456789", "lora:ink": "0011aabbccdd"\}',
        text.split("\n")[2],
    )


def test_an_empty_negative_prompt_has_no_line_and_a_row_of_weight_0_no_tag() -> None:
    text = infotext.write(CONFIG.model_copy(update={"negative_prompt": ""}), [Used("off", 0.0, HASH_A)], Model("b"))
    assert text.count("\n") == 1
    assert "off" not in text


def test_a_distilled_base_names_its_guidance_as_forge_does() -> None:
    text = infotext.write(CONFIG, [], Model("b", distilled=True))
    assert "CFG scale: 1, Distilled CFG Scale: 4.5, Seed" in text
    assert infotext.read(text).config.guidance == 4.5


def test_the_hash_of_nothing_is_not_written() -> None:
    text = infotext.write(CONFIG, [Used("ink", 1, "e3b0c44298fc" + "0" * 52), Used("wash", 1, "")], Model("b"))
    assert "hashes" not in text and "Hashes" not in text


def test_tags_in_the_prompt_are_written_once_with_the_weight_that_was_used() -> None:
    text = infotext.write(CONFIG.model_copy(update={"prompt": "cat <lora:ink:0.3>, blue"}), [Used("ink", 0.5, HASH_A)], Model("b"))
    assert text.startswith("cat, blue <lora:ink:0.5>\n")


def test_a1111_text_of_ours_reads_back() -> None:
    found = infotext.read(infotext.write(CONFIG, [Used("ink", -0.5, HASH_A)], Model("demo-sdxl")))
    assert found.config == CONFIG.model_copy(update={"loras": (LoraWeight(name="ink", weight=-0.5),)})
    assert found.hashes == {"ink": HASH_A[:12]}
    assert found.unknown == {} and not found.exact


FOREIGN = """masterpiece, 1girl, <lora:add_detail:0.6>
(hat:1.2), <lora:noir:1>
Negative prompt: lowres, bad: hands
second line
Steps: 30, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1234567890, Size: 832x1216, Model hash: 31e35c80fc, Model: sd_xl_base_1.0, \
VAE hash: "63aeecb90f", Clip skip: 2, Lora hashes: "add_detail: 7c6bad76eb54, noir: 0011aabbccdd", Denoising strength: 0.4, Version: v1.10.1"""


def test_a_picture_of_another_program_fills_what_it_can_and_lists_the_rest() -> None:
    found = infotext.read(FOREIGN)
    c = found.config
    assert c.prompt == "masterpiece, 1girl,\n(hat:1.2)"
    assert c.negative_prompt == "lowres, bad: hands\nsecond line"
    assert [(row.name, row.weight) for row in c.loras] == [("add_detail", 0.6), ("noir", 1.0)]
    assert (c.steps, c.sampler, c.guidance, c.seed, c.width, c.height, c.base) == (30, "DPM++ 2M Karras", 7.0, 1234567890, 832, 1216, "sd_xl_base_1.0")
    assert found.hashes == {"add_detail": "7c6bad76eb54", "noir": "0011aabbccdd"}
    assert set(found.unknown) == {"Model hash", "VAE hash", "Clip skip"} and c.strength == 0.4
    assert "count" not in found.given and "seed" in found.given


def test_every_mode_is_named_as_a1111_names_it_and_reads_back() -> None:
    ways = {"variation_seed": 9, "variation_strength": 0.25, "hires_scale": 1.5, "hires_steps": 12, "hires_strength": 0.4, "guidance_rescale": 0.7}
    config = CONFIG.model_copy(update=ways)
    text = infotext.write(config, [], Model("demo-sdxl"))
    assert "Variation seed: 9, Variation seed strength: 0.25, Denoising strength: 0.4, Hires upscale: 1.5, Hires steps: 12, Hires upscaler: Lanczos" in text
    assert infotext.read(text).config == config
    start = infotext.write(CONFIG.model_copy(update={"init_image": "ab" * 16 + ".png", "strength": 0.35}), [], Model("b"))
    assert "Denoising strength: 0.35, Init image hash: abababababab" in start and infotext.read(start).config.strength == 0.35


def test_a_known_version_carries_the_weight_that_no_tag_can() -> None:
    text = infotext.write(CONFIG, [Used("ink", -0.5, HASH_A, civitai=123), Used("wash", 0.5, HASH_B)], Model("b"))
    assert 'Civitai resources: [{"type": "lora", "modelVersionId": 123, "weight": -0.5}]' in text
    assert civitai(text)["loras"]["ink"] == (None, HASH_A[:12]) and infotext.read(text).hashes["wash"] == HASH_B[:12].lower()


def test_values_out_of_range_and_odd_tags_are_listed_instead_of_lost() -> None:
    found = infotext.read("cat <lora:ink:0.5:0.9>\nSteps: 9000, Sampler: Euler, Seed: 5, CFG scale: warm, Size: 512x512")
    assert found.config.seed == 5 and found.config.steps is None
    assert set(found.unknown) == {"steps", "guidance", "LoRA tags"}
    assert found.config.prompt == "cat <lora:ink:0.5:0.9>"


@pytest.mark.parametrize("text", ["", "just a prompt", "cat\nSteps: 20", "Negative prompt: x"])
def test_text_without_settings_is_refused(text: str) -> None:
    with pytest.raises(SettingsError):
        infotext.read(text)


def picture() -> Image.Image:
    return Image.linear_gradient("L").convert("RGB")


prompts = st.text(max_size=60) | st.sampled_from(
    ["Steps: 3, Sampler: x, Seed: 1", "猫 in 帽子", 'a "quoted": b', "a\n\nNegative prompt: b", "nul \0 here", "<3"]
)


@settings(max_examples=60, deadline=None)
@given(prompts, prompts, st.integers(0, 2**63 - 1), st.floats(0, 100), st.lists(st.tuples(st.text(min_size=1, max_size=9), st.floats(-10, 10)), max_size=3))
def test_settings_come_back_exactly_from_a_png(tmp_path_factory, prompt, negative, seed, guidance, rows) -> None:
    loras = tuple(LoraWeight(name=name, weight=weight) for name, weight in rows if name.strip())
    config = GenerateConfig(prompt=prompt, negative_prompt=negative, seed=seed, guidance=guidance, loras=loras, steps=3, width=64, height=64)
    path = tmp_path_factory.getbasetemp() / "exact.png"
    files.save(picture(), path, config, [Used(row.name, row.weight, HASH_A) for row in loras], Model("demo-sdxl"))
    found = files.load(path)
    assert found.config == config and found.exact
    assert set(found.hashes) == {row.name for row in loras}


def test_a_png_holds_both_texts_and_bytes_read_as_the_file_does(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.png"
    files.save(picture(), path, CONFIG, [], Model("demo-sdxl"))
    with Image.open(path) as image:
        assert image.text["parameters"] == infotext.write(CONFIG, [], Model("demo-sdxl"))  # type: ignore[attr-defined]
        assert json.loads(image.text["lora_studio"])["version"] == 1  # type: ignore[attr-defined]
    assert files.load(path.read_bytes()) == files.load(str(path)) == files.load(path)
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


def foreign_png(**texts: str) -> bytes:
    info, buffer = PngInfo(), BytesIO()
    for key, value in texts.items():
        info.add_text(key, value)
    picture().save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def test_a_later_version_and_broken_text_are_one_line() -> None:
    with pytest.raises(ImageError, match="later version"):
        files.load(foreign_png(lora_studio=json.dumps({"version": 2, "settings": {}, "adapters": []})))
    for broken in ("{", "[]", '{"version": 1}', '{"version": 1, "settings": 3, "adapters": []}'):
        with pytest.raises(ImageError, match="broken"):
            files.load(foreign_png(lora_studio=broken))


@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
def test_the_text_of_a_jpeg_is_read_from_its_exif(order: str) -> None:
    exif, buffer = Image.Exif(), BytesIO()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + FOREIGN.encode(order)
    picture().save(buffer, "JPEG", exif=exif)
    assert files.load(buffer.getvalue()).config == infotext.read(FOREIGN).config


def test_files_without_settings_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="carries no settings"):
        files.load(foreign_png(Comment="hello"))
    with pytest.raises(ImageError, match="no PNG, JPEG or WebP"):
        files.load(b"not a picture")
    with pytest.raises(ImageError, match="no such file"):
        files.load(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="no PNG"):
        files.load(tmp_path)
