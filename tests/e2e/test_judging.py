"""Held-out pictures in the page: the curve, the mark of the best, evaluation and a fork."""

from tests.e2e.conftest import Studio, Watched
from tests.e2e.test_queue import ask, emptied


def test_a_run_shows_its_held_out_loss_and_can_be_evaluated_and_forked(watched: Watched, studio: Studio) -> None:
    page = watched.page
    # two pictures to look at, five levels of noise at once: looks are what takes time here
    held = {"validation_fraction": 0.1, "validation_every": 1, "save_every": 1, "batch_size": 5, "resolution": 64, "rank": 2, "steps": 2}
    ask(studio, "/jobs/train", images="blueprint", base="demo-sdxl", name="judged", **held)
    page.click(".st-rail-item[data-view=train]")
    page.wait_for_selector(".st-run-name")
    if "judged" not in page.inner_text(".st-run-name"):  # the run of another test is open
        page.click(".st-run-name")
        page.click("[role=menuitem]:has-text('judged')")
    page.wait_for_selector(".st-run-name:has-text('judged')")
    page.wait_for_selector(".st-checkpoints li:has-text('Step 2')", timeout=300_000)
    page.wait_for_selector(".st-legend:has-text('held out, with the 95 % interval')")
    assert page.locator(".st-checkpoints .st-badge").count() == 1
    assert "held-out loss" in (page.get_attribute(".st-chart canvas", "aria-label") or "")

    page.click(".st-run-controls button:has-text('Evaluate')")
    page.wait_for_selector(".st-table .is-best td:has-text('best')", timeout=300_000)
    assert page.locator(".st-table tbody tr").count() == 2
    page.keyboard.press("Escape")

    page.click(".st-checkpoints li:has-text('Step 1') button:has-text('Fork')")
    page.fill("input[aria-label='Steps']", "1")
    page.click("button:has-text('Start the fork')")
    page.wait_for_selector(".st-run-name:has-text('judged-fork')", timeout=60_000)
    emptied(studio)
    assert watched.errors == []
