"""A file let go on the library: the page says what it is, whether it fits, and why not."""

import base64
import io
import zipfile
from pathlib import Path

import pytest
import torch
from playwright.sync_api import expect
from safetensors.torch import save

from tests.e2e.conftest import Watched

SCRIPT = """([name, content]) => {
  const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name));
  return transfer;
}"""


def lora(module: str, width: int, rows: int) -> bytes:
    layers = {"lora_down.weight": torch.ones(4, width), "lora_up.weight": torch.ones(rows, 4), "alpha": torch.tensor(4.0)}
    return save({f"{module}.{name}": tensor for name, tensor in layers.items()}, {"format": "pt"})


def pickled() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    return out.getvalue()


SDXL = lora("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 2048, 640)
FLUX = lora("lora_unet_double_blocks_0_img_attn_proj", 3072, 3072)
SD1 = lora("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 768, 320)


def drop(watched: Watched, name: str, content: bytes) -> None:
    watched.page.keyboard.press("Escape")  # what the test before let go of
    expect(watched.page.locator("dialog")).to_have_count(0)
    watched.view("library")
    transfer = watched.page.evaluate_handle(SCRIPT, [name, base64.b64encode(content).decode()])
    watched.page.dispatch_event(".st-library", "drop", {"dataTransfer": transfer})
    watched.page.wait_for_selector("dialog .st-about, dialog .st-refused", timeout=60_000)


@pytest.mark.parametrize(("name", "content", "words"), [("x.safetensors", SDXL, "Stable Diffusion XL"), ("f.safetensors", FLUX, "FLUX.1")])
def test_a_lora_is_told_with_its_bases_and_programs(shared: Watched, name: str, content: bytes, words: str, tmp_path: Path) -> None:
    drop(shared, name, content)
    page = shared.page
    other = "demo-flux" if "XL" in words else "demo-sdxl"
    row = page.locator(f"dialog li[data-base='{other}']")
    expect(row).to_contain_text("does not fit")
    expect(row).to_contain_text(f"it is a LoRA for {words}")
    expect(page.locator("dialog li[data-client=ComfyUI]")).to_contain_text("loads")
    expect(page.locator("dialog footer button")).not_to_have_attribute("aria-disabled", "true")
    if "XL" in words:
        expect(page.locator("dialog li[data-client=A1111]")).to_contain_text("hidden")
        page.click("dialog footer button")
        page.wait_for_selector(".st-toast:has-text('1 LoRA in the library')")
        page.click(".st-lora:has-text('x')")
        expect(page.locator(".st-drawer .st-report li[data-client=Forge]")).to_contain_text("loads")
    assert shared.errors == [] and shared.foreign == []


def test_a_lora_for_another_kind_of_model_is_named_and_not_taken(shared: Watched) -> None:
    drop(shared, "old.safetensors", SD1)
    expect(shared.page.locator("dialog .st-about")).to_contain_text("is a LoRA for Stable Diffusion 1")
    expect(shared.page.locator("dialog li[data-base='demo-sdxl']")).to_contain_text("does not fit")
    expect(shared.page.locator("dialog footer button")).to_have_attribute("aria-disabled", "true")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.ckpt", pickled(), "pickle"),
        ("page.safetensors", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "web page"),
    ],
)
def test_what_is_no_lora_is_named_for_what_it_is(shared: Watched, name: str, content: bytes, words: str) -> None:
    drop(shared, name, content)
    expect(shared.page.locator("dialog .st-refused")).to_contain_text(words)
    expect(shared.page.locator("dialog .st-refused")).to_contain_text(name)
    expect(shared.page.locator("dialog footer button")).to_have_attribute("aria-disabled", "true")
