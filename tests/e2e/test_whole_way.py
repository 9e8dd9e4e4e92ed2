"""From uploaded pictures to a stack of two LoRAs and a file for others, as a person does it."""

import json
import re
import struct
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect

SETS = Path(__file__).parents[2] / "assets" / "sets"
ABOUT = {path.parent: json.loads(path.read_text()) for path in SETS.glob("*/set.json")}
CHARACTER, WORD = next((folder, about["trigger"]) for folder, about in ABOUT.items() if about["kind"] == "character")
STYLE, STYLE_WORD = next((about["title"], about["trigger"]) for about in ABOUT.values() if about["kind"] == "style")
SLOW = 120_000


def upload(page: Page, name: str, trigger: str, files: list[Path]) -> None:
    page.get_by_role("button", name="New set").click()
    box = page.get_by_role("dialog", name="New image set")
    box.get_by_label("Name", exact=True).fill(name)
    box.get_by_label("Trigger word").fill(trigger)
    box.get_by_role("button", name="Create").click()
    expect(page.locator(".st-setcard[aria-checked=true]")).to_contain_text(name)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Add pictures").click()
    chooser.value.set_files(files)
    expect(page.locator(".st-picture")).to_have_count(sum(path.suffix == ".png" for path in files))


def train(page: Page, **settings: str) -> None:
    advanced = page.locator("#train-fold .st-fold")
    if advanced.get_attribute("aria-expanded") == "false":
        advanced.click()
    for field, value in settings.items():
        page.locator(f"#train-{field} :is(input, textarea)").fill(value)
    page.get_by_role("button", name="Start training").click()
    expect(page.locator(".st-run-name")).to_contain_text(settings["name"])


def finished(page: Page) -> None:
    expect(page.locator(".st-run-title .st-badge")).to_have_text(re.compile("finished|failed"), timeout=SLOW)
    assert page.locator(".st-run-title .st-badge").inner_text() == "finished", page.locator(".st-run-words").inner_text()


def listed(address: str, what: str) -> list[dict]:
    with urllib.request.urlopen(f"{address}/api/{what}") as reply:
        return json.load(reply)["items"]


def test_from_pictures_to_a_shared_file(watched, studio, tmp_path: Path) -> None:
    page = watched.page
    before = len(listed(studio.address, "adapters"))  # other tests share this studio
    others = {job["id"] for job in listed(studio.address, "jobs")}
    prompt = f"{WORD} in the snow, {STYLE_WORD}"
    watched.view("train")

    files = [path for path in sorted(CHARACTER.iterdir()) if path.suffix in (".png", ".txt")][:12]
    upload(page, "mascot", WORD, files)
    expect(page.locator(".st-caption").first).to_have_value(re.compile(WORD.split()[0]))
    expect(page.locator("#train-trigger :is(input, textarea)")).to_have_value(WORD)
    train(page, name="mascot", steps="4", resolution="64", batch_size="1", rank="4", sample_every="2", save_every="2", sample_prompts=f"{WORD}, smiling")

    expect(page.locator(".st-figure", has_text="Rate").locator("b")).to_have_text(re.compile(r"\d . 1$"), timeout=SLOW)
    expect(page.locator(".st-figure b").first).to_contain_text(re.compile(r"[1-4] / 4"), timeout=SLOW)
    finished(page)
    expect(page.locator(".st-film-column")).to_have_count(2)
    expect(page.locator(".st-checkpoints li")).to_have_count(2)
    assert page.locator(".st-chart canvas").get_attribute("aria-label").startswith("Loss over steps: ")
    assert "at step 4" in page.locator(".st-chart canvas").get_attribute("aria-label")

    page.locator(".st-setcard", has_text=STYLE).click()
    expect(page.locator("#train-name :is(input, textarea)")).to_have_value(STYLE)
    train(page, name="style", steps="2", resolution="64", batch_size="1", rank="4", sample_every="0", save_every="0")
    finished(page)
    page.get_by_role("button", name="Use in Generate").first.click()

    page.get_by_role("button", name="Add LoRA").click()
    page.locator(".st-tile", has_text="mascot").click()
    expect(page.locator(".st-stackrow")).to_have_count(2)
    expect(page.locator("#generate-prompt textarea")).to_have_value(re.compile(WORD))
    page.locator("#generate-prompt textarea").fill(prompt)
    page.get_by_label("Weight of mascot as a number").fill("0.7")
    page.locator("#generate-steps :is(input, textarea)").fill("2")
    page.locator("#generate-seed :is(input, textarea)").fill("11")
    page.get_by_role("button", name="Generate", exact=True).last.click()
    picture = page.locator(".st-view-image")
    expect(picture).to_have_attribute("src", re.compile("/api/images/"), timeout=SLOW)
    expect(page.locator(".st-loralist li")).to_have_count(2)

    page.locator("#generate-seed :is(input, textarea)").fill("5")
    page.locator("#generate-prompt textarea").fill("something else")
    page.get_by_role("button", name="Recall all").click()
    expect(page.locator("#generate-prompt textarea")).to_have_value(prompt)
    expect(page.locator("#generate-seed :is(input, textarea)")).to_have_value("11")
    expect(page.get_by_label("Weight of mascot as a number")).to_have_value("0.7")

    with page.expect_download() as saved:
        page.locator("#generate-facts").get_by_role("button", name="Save").click()
    png = tmp_path / "made.png"
    saved.value.save_as(png)
    assert "Lora hashes" in Image.open(png).text["parameters"]
    page.locator("#generate-prompt textarea").fill("changed again")
    transfer = page.evaluate_handle(
        "async (bytes) => { const t = new DataTransfer(); t.items.add(new File([new Uint8Array(bytes)], 'made.png', {type: 'image/png'})); return t; }",
        list(png.read_bytes()),
    )
    page.dispatch_event(".st-stage", "drop", {"dataTransfer": transfer})
    expect(page.locator("#generate-prompt textarea")).to_have_value(prompt)

    expect(page.locator(".st-verdict:not(.is-stale)")).to_be_visible(timeout=SLOW)  # nothing is deleted below while it is still compared
    watched.view("library")
    expect(page.locator(".st-lora")).to_have_count(before + 2)
    page.locator(".st-lora", has_text="mascot").click()
    page.locator(".st-drawer").get_by_role("button", name="Export").click()
    with page.expect_download(timeout=SLOW) as exported:
        page.get_by_role("button", name="Export and download").click()
    file = tmp_path / "mascot.safetensors"
    exported.value.save_as(file)
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    assert any(key.startswith("lora_unet_") for key in header)
    assert content == (studio.data / "exports" / "mascot.safetensors").read_bytes()

    page.locator(".st-drawer").get_by_role("button", name="Delete").click()
    expect(page.locator(".st-lora")).to_have_count(before + 1)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".st-lora")).to_have_count(before + 2)

    assert {job["state"] for job in listed(studio.address, "jobs") if job["id"] not in others} == {"finished"}
    assert (watched.errors, watched.foreign, watched.dialogs) == ([], [], [])
