"""Tools of the library, as a person uses them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.workspace import Workspace
from tests.e2e.conftest import Studio, Watched
from tests.jobs.test_tools import lora


@pytest.fixture
def two(studio: Studio, tmp_path: Path) -> Iterator[None]:
    """Two LoRAs in the library before the page is opened."""
    with Workspace.open(studio.data) as workspace:
        for seed, name in enumerate(("tool-one", "tool-two")):
            workspace.library.add(lora(tmp_path / f"{name}.safetensors", seed))
    yield
    with Workspace.open(studio.data) as workspace:
        for found in workspace.library.list("tool-"):
            workspace.library.remove(found.id)


def test_merging_and_baking_on_the_page(two: None, watched: Watched) -> None:
    page = watched.page
    watched.view("library")
    page.click(".st-lora:has-text('tool-one')")
    page.click(".st-drawer >> text=Merge with")
    page.select_option("select[aria-label='Add another LoRA']", "tool-two")
    page.fill("input[aria-label='Weight of tool-two']", "-0.5")
    page.click("dialog footer button")
    page.wait_for_selector(".st-toast:has-text('tool-one-merged is in the library'):has-text('1 layer of rank 8; nothing was lost')", timeout=60_000)
    page.click(".st-toast >> text=Show")
    page.wait_for_selector(".st-drawer h2:has-text('tool-one-merged')")
    page.click(".st-drawer >> text=Bake")
    page.click("dialog footer button")
    page.wait_for_selector(".st-toast:has-text('.safetensors is ready')", timeout=60_000)
    with page.expect_download() as download:
        page.click(".st-toast:has-text('is ready') >> text=Save")
    assert download.value.suggested_filename == "demo-sdxl-tool-one-merged.safetensors"
    assert download.value.path().stat().st_size > 1_000_000
    assert watched.errors == [] and watched.foreign == []
