"""Generate as a desktop: rows, sliders, toggles, trigger words, a start picture with a painted mask, previews, cancel, recall by drop."""

import io
import json
import os
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import pytest
from playwright.sync_api import Page, expect

from studio.families import sources
from studio.generation.sampler import open_base
from studio.lora import formats
from tests.e2e.conftest import Studio, Watched
from tests.generation.conftest import adapter

SLOW = 120_000
CIVITAI = 128713  # the number that a side file gives the first LoRA
LOOK = os.environ.get("LOOK_FOLDER")  # a folder for screenshots, to look at while working on the page


def look(page: Page, name: str) -> None:
    if LOOK:
        page.screenshot(path=f"{LOOK}/{name}.png")


def asked(studio: Studio, path: str, method: str = "GET", body: dict | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{studio.address}/api{path}", data, {"content-type": "application/json"}, method=method)) as reply:
        return json.load(reply)


@pytest.fixture(scope="module")
def loras(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """LoRAs of random numbers in the studio's library, the first with trigger words; the last makes the same change as the first."""
    c = open_base(sources.find("demo-sdxl"), "fp32", "cpu")
    folder = tmp_path_factory.mktemp("loras")
    boundary, parts = "0123456789abcdef", b""
    names = ["inkwash", "sdxl_lightning_2step", "copycat"]
    for seed, name in zip((0, 1, 0), names, strict=True):
        path = folder / f"{name}.safetensors"
        words = {"ss_output_name": name, "modelspec.title": name} | ({"modelspec.trigger_phrase": "zqx ink"} if name == "inkwash" else {})
        formats.write(adapter(c, seed, size=0.1), path, format="kohya", dtype="fp16", metadata=words)
        card = json.dumps({"id": CIVITAI, "modelId": 7}).encode()
        for file, content in ((path.name, path.read_bytes()), *([(f"{name}.civitai.info", card)] if name == "inkwash" else [])):
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{file}"\r\nContent-Type: application/octet-stream\r\n\r\n'
            parts += head.encode() + content + b"\r\n"
    kind = {"content-type": f"multipart/form-data; boundary={boundary}"}
    request = urllib.request.Request(f"{studio.address}/api/adapters", parts + f"--{boundary}--\r\n".encode(), kind)
    with urllib.request.urlopen(request) as reply:
        assert reply.status in (200, 201)
    yield names
    for row in asked(studio, "/adapters")["items"]:
        if row["name"] in names:
            asked(studio, f"/adapters/{row['id']}", "DELETE")


@pytest.fixture
def desk(shared: Watched) -> Watched:
    """The Generate view with the settings it comes with and no LoRA."""
    shared.view("generate")
    expect(shared.page.locator(".st-stackrow")).to_have_count(0)
    shared.page.locator("#view-generate").get_by_role("button", name="Back to the defaults").click()
    expect(field(shared.page, "steps")).to_have_value("")
    return shared


def field(page: Page, name: str):
    return page.locator(f"#generate-{name} :is(input, textarea)").first


def unfold(page: Page, id: str) -> None:
    fold = page.locator(f"[aria-controls=generate-{id}]")
    if fold.get_attribute("aria-expanded") == "false":
        fold.click()


def generate(page: Page) -> None:
    page.get_by_role("button", name="Generate", exact=True).last.click()


def drawn(page: Page, before: str | None) -> None:
    image = page.locator(".st-view-image")
    expect(image).to_have_attribute("src", re.compile("/api/images/"), timeout=SLOW)
    if before:
        expect(image).not_to_have_attribute("src", before, timeout=SLOW)
    expect(page.locator(".st-drawing")).to_be_hidden(timeout=SLOW)


def add(page: Page, name: str) -> None:
    page.get_by_role("button", name="Add LoRA").click()
    page.locator(".st-tile", has_text=name).click()


def test_rows_come_with_their_words_and_settings_and_leave_with_them(desk: Watched, loras: list[str]) -> None:
    page = desk.page
    prompt = page.locator("#generate-prompt textarea")
    prompt.fill("a cat")
    add(page, "inkwash")
    expect(prompt).to_have_value("zqx ink, a cat")
    add(page, "sdxl_lightning")
    expect(page.locator(".st-toast", has_text="is a Lightning LoRA")).to_contain_text("steps 2")
    page.get_by_role("button", name="Use these").click()
    expect(field(page, "steps")).to_have_value("2")
    expect(page.locator("#generate-sampler input")).to_have_value("Euler SGM Uniform")
    slider = page.get_by_label("Weight of inkwash", exact=True)
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_label("Weight of inkwash as a number")).to_have_value("0.95")
    page.get_by_label("Use inkwash").click()
    expect(page.locator(".st-stackrow", has_text="inkwash")).to_have_class(re.compile("is-off"))
    page.keyboard.press("Alt+ArrowDown")
    expect(page.locator(".st-stackrow b").last).to_have_text("inkwash")
    look(page, "rows")
    page.get_by_role("button", name="Remove inkwash").click()
    expect(prompt).to_have_value("a cat")
    page.get_by_role("button", name="Remove sdxl_lightning_2step").click()
    expect(page.locator(".st-stackrow")).to_have_count(0)
    assert (desk.errors, desk.foreign) == ([], [])


def rows_sent(page: Page) -> list[dict]:
    """The stack as the page keeps it."""
    page.wait_for_timeout(250)
    return [{"name": row["name"], "weight": row["weight"], **row.get("more", {})} for row in json.loads(page.evaluate("localStorage['studio.stack']"))]


def test_a_stack_is_judged_and_takes_the_weights_that_are_suggested(desk: Watched, loras: list[str]) -> None:
    page = desk.page
    add(page, "inkwash")
    page.get_by_label("Weight of inkwash as a number").fill("1")
    verdict = page.locator(".st-verdict")
    expect(verdict).to_contain_text("Fits the base", timeout=SLOW)
    add(page, "copycat")
    expect(verdict).to_contain_text("In each other's way", timeout=SLOW)
    expect(verdict).to_contain_text("inkwash and copycat make much the same change (100% overlap")
    page.get_by_role("button", name="Apply").click()
    for name in ("inkwash", "copycat"):
        expect(page.get_by_label(f"Weight of {name} as a number")).to_have_value("0.7")
    expect(verdict).to_contain_text("Worth a look", timeout=SLOW)
    expect(page.get_by_role("button", name="Apply")).to_have_count(0)
    verdict.get_by_text("Figures").click()
    look(page, "verdict")
    page.locator(".st-toast", has_text="suggested weights").get_by_role("button", name="Undo").click()
    expect(page.get_by_label("Weight of copycat as a number")).to_have_value("1")
    page.get_by_label("Use copycat").click()
    expect(verdict).to_contain_text("Fits the base", timeout=SLOW)
    for name in ("inkwash", "copycat"):
        page.get_by_role("button", name=f"Remove {name}").click()
    expect(verdict).to_be_hidden()
    assert (desk.errors, desk.foreign) == ([], [])


def test_strengths_by_part_block_and_step_are_set_by_keys_drawn_with_and_recalled(desk: Watched, studio: Studio, loras: list[str]) -> None:
    page = desk.page
    page.locator("#generate-prompt textarea").fill("cat face")
    add(page, "inkwash")
    page.get_by_role("button", name="Strengths of inkwash").click()
    page.get_by_label("Own strength on the text encoders for inkwash").click()
    page.get_by_label("Text encoders of inkwash as a number").fill("0.25")
    slider = page.get_by_label("Output blocks of inkwash", exact=True)
    slider.focus()
    page.keyboard.press("ArrowLeft")
    page.get_by_label("Name of a block").fill("unet.1")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_label("Name of a block")).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Name of a block").fill("input.1")
    page.keyboard.press("Enter")
    page.get_by_label("Input blocks 1 of inkwash as a number").fill("0.5")
    page.get_by_role("button", name="Fade out").click()
    page.get_by_role("button", name="Add a point to the curve").click()
    expect(page.locator(".st-curve-point")).to_have_count(3)
    for key in ("ArrowUp", "ArrowUp", "ArrowLeft"):
        page.keyboard.press(key)
    page.locator(".st-curve-point").last.focus()
    page.keyboard.press("Delete")
    box = page.locator(".st-curve").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.5)
    look(page, "strengths")
    row = {"name": "inkwash", "weight": 1, "text_weight": 0.25, "blocks": {"output": 0.95, "input.1": 0.5}}
    [sent] = rows_sent(page)
    assert {key: sent[key] for key in row} == row and sent["schedule"][:2] == [[0, 1], [0.48, 1.04]] and len(sent["schedule"]) == 3
    before = page.locator(".st-view-image").get_attribute("src")
    field(page, "steps").fill("2")
    generate(page)
    drawn(page, before)
    made = asked(studio, "/images")["items"][0]
    assert made["settings"]["loras"] == [sent]
    with urllib.request.urlopen(f"{studio.address}{made['url']}") as reply, PIL.Image.open(io.BytesIO(reply.read())) as picture:
        assert f'Civitai resources: [{{"type": "lora", "modelVersionId": {CIVITAI}, "weight": 1.0}}]' in picture.text["parameters"]
    page.get_by_role("button", name="Level").click()
    page.get_by_label("Own strength on the text encoders for inkwash").click()
    page.get_by_role("button", name="Leave out Input blocks 1").click()
    slider.dblclick()
    assert rows_sent(page) == [{"name": "inkwash", "weight": 1, "blocks": {}, "schedule": []}]
    page.get_by_role("button", name="Recall all").click()
    expect(page.locator(".st-stackrow-fold")).to_have_class(re.compile("is-used"))
    assert rows_sent(page) == [sent]
    page.get_by_role("button", name="Remove inkwash").click()
    assert (desk.errors, desk.foreign) == ([], [])


def test_a_training_that_runs_is_drawn_with_as_it_is_and_its_steps_are_pinned(desk: Watched, studio: Studio) -> None:
    page = desk.page
    settings = {"images": "blueprint", "name": "under-way", "steps": 100_000, "resolution": 64, "batch_size": 1, "rank": 2}
    run = asked(studio, "/jobs/train", "POST", {**settings, "base": "demo-sdxl", "sample_every": 0, "save_every": 0})["id"]
    try:
        desk.view("train")
        page.evaluate(f"import(document.querySelector('use').href.baseVal.replace('icons.svg#mark', 'js/bus.js')).then((bus) => bus.say('open-run', '{run}'))")
        page.get_by_role("button", name="Pin this step").click(timeout=SLOW)
        page.locator(".st-toast", has_text="becomes a checkpoint").wait_for(timeout=SLOW)
        expect(page.locator(".st-checkpoints li")).to_have_count(1, timeout=SLOW)
        desk.view("generate")
        page.locator("#generate-prompt textarea").fill("cat face")
        field(page, "steps").fill("2")
        add(page, "under-way")
        row = page.locator(".st-stackrow", has_text="run under-way")
        expect(row.locator(".st-chip")).to_have_text(re.compile(r"step \d+"))
        expect(page.locator(".st-verdict")).to_contain_text("Fits the base", timeout=SLOW)
        before = page.locator(".st-view-image").get_attribute("src")
        generate(page)
        expect(page.locator(".st-drawing")).to_contain_text("Waits for under-way", timeout=SLOW)
        look(page, "live")
        page.get_by_role("button", name="Pause it").click()
        drawn(page, before)
        kept = asked(studio, f"/jobs/{run}/checkpoints")["items"]
        assert asked(studio, "/images")["items"][0]["settings"]["loras"][0]["name"] == f"under-way@{kept[1]['step']}"
        page.get_by_role("button", name="Recall all").click()
        expect(row.locator(".st-chip")).to_have_text(f"step {kept[1]['step']}")
        expect(row).not_to_have_class(re.compile("is-off"))
        page.get_by_role("button", name="Remove under-way").click()
    finally:
        asked(studio, f"/jobs/{run}/cancel", "POST")
    assert (desk.errors, desk.foreign) == ([], [])


def test_a_rough_preview_shows_and_a_cancel_ends_it(desk: Watched, studio: Studio) -> None:
    page = desk.page
    page.locator("#generate-prompt textarea").fill("cat face")
    field(page, "steps").fill("400")
    unfold(page, "advanced")
    field(page, "live_preview").fill("0.05")
    generate(page)
    expect(page.locator(".st-view-rough")).to_be_visible(timeout=SLOW)
    page.wait_for_function("document.querySelector('.st-view-rough').naturalWidth > 4")
    look(page, "preview")
    page.locator(".st-drawing").get_by_role("button", name="Cancel").click()
    expect(page.locator(".st-drawing")).to_be_hidden(timeout=SLOW)
    expect(page.locator(".st-view-rough")).to_be_hidden()
    assert asked(studio, "/jobs?kind=generate")["items"][0]["state"] == "cancelled"
    assert (desk.errors, desk.foreign) == ([], [])


def test_a_picture_is_drawn_on_inside_a_painted_mask(desk: Watched, studio: Studio) -> None:
    page = desk.page
    page.locator("#generate-prompt textarea").fill("cat face")
    field(page, "steps").fill("3")
    field(page, "seed").fill("7")
    before = page.locator(".st-view-image").get_attribute("src")
    generate(page)
    drawn(page, before)
    first = asked(studio, "/images")["items"][0]
    page.locator("#generate-facts").get_by_role("button", name="Start from it").click()
    expect(page.locator(".st-source-image")).to_be_visible()
    page.get_by_role("button", name="Paint mask").click()
    canvas = page.locator(".st-mask-canvas")
    expect(canvas).to_be_visible()
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.5, steps=6)
    look(page, "mask")
    page.mouse.up()
    page.get_by_role("button", name="Use the mask").click()
    expect(page.locator(".st-source-mask")).to_be_visible()
    field(page, "strength").fill("0.9")
    look(page, "source")
    generate(page)
    drawn(page, first["url"])
    second = asked(studio, "/images")["items"][0]
    assert second["settings"]["mask"] and second["settings"]["strength"] == 0.9 and second["settings"]["init_image"]
    page.get_by_role("button", name="Before / after").click()
    expect(page.locator(".st-view-before")).to_be_visible()
    look(page, "compare")
    page.get_by_role("button", name="Take it out").click()
    expect(page.locator(".st-source")).to_be_hidden()
    page.get_by_role("button", name="Recall all").click()
    expect(page.locator(".st-source-mask")).to_be_visible()
    page.get_by_role("button", name="Take it out").click()
    assert (desk.errors, desk.foreign) == ([], [])


def test_a_dropped_picture_brings_all_back_and_names_what_is_another_one(desk: Watched, studio: Studio, loras: list[str], tmp_path: Path) -> None:
    from PIL import Image

    from studio.config import GenerateConfig, build
    from studio.generation import files
    from studio.generation.infotext import Model, Used

    page = desk.page
    values = {"prompt": "a fox, zqx ink", "seed": 99, "steps": 3, "hires_scale": 1.5, "format": "jpeg", "loras": [{"name": "inkwash", "weight": 0.4}]}
    files.save(Image.new("RGB", (64, 64)), tmp_path / "x.jpg", build(GenerateConfig, values), [Used("inkwash", 0.4, "ab" * 32)], Model("demo-sdxl"))
    script = "(bytes) => { const t = new DataTransfer(); t.items.add(new File([new Uint8Array(bytes)], 'x.jpg', {type: 'image/jpeg'})); return t; }"
    page.dispatch_event(".st-stage", "drop", {"dataTransfer": page.evaluate_handle(script, list((tmp_path / "x.jpg").read_bytes()))})
    expect(page.locator("#generate-prompt textarea")).to_have_value("a fox, zqx ink")
    expect(field(page, "seed")).to_have_value("99")
    unfold(page, "larger")
    expect(field(page, "hires_scale")).to_have_value("1.5")
    expect(page.locator(".st-toast", has_text="not all is as it was")).to_contain_text("inkwash is another file here")
    row = page.locator(".st-stackrow", has_text="inkwash")
    expect(row).to_have_class(re.compile("is-off"))
    expect(row.locator(".st-misfit")).to_have_text("another file than the picture was drawn with")
    look(page, "recalled")
    page.get_by_role("button", name="Remove inkwash").click()
    assert (desk.errors, desk.foreign) == ([], [])


def test_a_preset_is_kept_put_on_and_forgotten(desk: Watched, studio: Studio) -> None:
    page = desk.page
    field(page, "steps").fill("5")
    page.get_by_role("button", name="Presets").click()
    page.get_by_role("button", name="Keep these settings").click()
    box = page.get_by_role("dialog", name="Keep as a preset")
    box.get_by_label("Name").fill("Quick")
    box.get_by_label("Words", exact=True).fill("photo of {prompt}")
    look(page, "preset")
    box.get_by_role("button", name="Keep", exact=True).click()
    expect(page.locator(".st-toast", has_text="Quick is kept")).to_be_visible()
    field(page, "steps").fill("9")
    page.locator("#generate-prompt textarea").fill("a cat")
    page.get_by_role("button", name="Presets").click()
    page.locator(".st-preset", has_text="Quick").locator(".st-menu-item").click()
    expect(page.locator("#generate-prompt textarea")).to_have_value("photo of a cat")
    expect(field(page, "steps")).to_have_value("5")
    page.get_by_role("button", name="Presets").click()
    page.get_by_role("button", name="Forget Quick").click()
    expect(page.locator(".st-preset")).to_have_count(0)
    assert asked(studio, "/presets")["items"] == []
    assert (desk.errors, desk.foreign) == ([], [])


def test_a_grid_is_one_job_and_one_page_whose_cells_are_recalled(desk: Watched, studio: Studio, loras: list[str]) -> None:
    page = desk.page
    page.locator("#generate-prompt textarea").fill("cat face")
    add(page, "inkwash")
    field(page, "steps").fill("2")
    field(page, "seed").fill("3")
    unfold(page, "grid")
    for values, kind in (("cat,donut", "prompt"), ("0..1", "weight")):
        page.get_by_role("button", name="Add an axis").click()
        row = page.locator(".st-axis").last
        row.get_by_label("What changes").select_option(kind)
        row.get_by_label("Values").fill(values)
    look(page, "axes")
    page.get_by_role("button", name="Generate 4 pictures").click()
    expect(page.locator(".st-drawing")).to_be_visible()
    expect(page.locator(".st-drawing")).to_be_hidden(timeout=SLOW)
    job = asked(studio, "/jobs?kind=generate")["items"][0]
    assert job["result"]["grid"] == "grid.png" and len(asked(studio, f"/images?job={job['id']}")["items"]) == 4
    page.get_by_role("button", name="Grid", exact=True).click()
    sheet = page.get_by_role("dialog", name="Grid")
    expect(sheet.locator(".st-sheet-cell img")).to_have_count(4)
    expect(sheet.locator(".st-sheet-top")).to_have_text(["cat", "donut"])
    expect(sheet.locator(".st-sheet-side")).to_have_text(["weight 0", "weight 1"])
    before = sheet.locator(".st-sheet-cell").first.bounding_box()
    sheet.locator(".st-sheet-board").focus()
    page.keyboard.press("+")
    after = sheet.locator(".st-sheet-cell").first.bounding_box()
    assert before and after and after["width"] > before["width"]
    page.wait_for_timeout(300)
    look(page, "sheet")
    sheet.get_by_role("button", name="donut · weight 0").click()
    sheet.get_by_role("button", name="Recall").click()
    expect(page.locator("#generate-prompt textarea")).to_have_value("zqx ink, donut face")
    expect(page.get_by_label("Weight of inkwash as a number")).to_have_value("0")
    for _ in range(2):
        page.get_by_role("button", name="Remove this axis").first.click()
    expect(page.locator(".st-axis")).to_have_count(0)
    page.get_by_role("button", name="Remove inkwash").click()
    assert (desk.errors, desk.foreign) == ([], [])
