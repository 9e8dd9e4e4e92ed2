"""Claims about picking pairs in the gallery, on a studio of its own that begins with two pictures."""

from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser

from studio.data.images import read_set
from studio.data.pairs import pairs_of
from studio.library.models import ImageRow
from studio.workspace import Workspace

from .conftest import Studio, Watched


@pytest.mark.long
def test_two_pictures_become_a_pair(browser: Browser, tmp_path: Path) -> None:
    opened = Workspace.open(tmp_path / "data")
    for i, colour in enumerate(("red", "blue")):
        path = opened.layout.images / f"{colour}.png"
        Image.new("RGB", (128, 128), colour).save(path)
        with opened._db.write() as session:
            row = ImageRow(id=colour, job="j", path=f"images/{colour}.png", source="", width=128, height=128, seed=1, prompt="a wall", created=1.0 + i)
            session.add(row)
    opened.close()
    running = Studio(tmp_path / "data")
    running.start()
    try:
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        watched = Watched(context.new_page(), running.address.removeprefix("http://"))
        page = watched.page
        page.set_default_timeout(30_000)
        page.goto(running.address)
        page.wait_for_selector(".st-setcard")
        watched.view("generate")
        page.click("text=The better of two")
        page.wait_for_selector("text=Forget the mark")
        page.screenshot(path=tmp_path / "marked.png")
        page.keyboard.press("ArrowRight")
        page.click("text=Worse than the marked one")
        page.wait_for_selector("text=Pair kept")
        page.screenshot(path=tmp_path / "kept.png")
        assert watched.errors == []
        context.close()
    finally:
        running.stop()
    kept = pairs_of(read_set(Workspace.open(tmp_path / "data").sets.resolve("preferences").folder))
    assert [(better.name, worse.name) for better, worse in kept] == [("blue.png", "red.png")]
