"""Captions by a model, asked for and taken back in the page; and a worker that stands still, as the page shows it."""

import json
import os
import signal
import urllib.request
from pathlib import Path

import psutil
import pytest

from studio.jobs.processes import WorkerFolder
from tests.e2e.conftest import Studio, Watched
from tests.e2e.test_queue import ask
from tests.jobs.blip import tiny_blip
from tests.jobs.conftest import draw_pictures


def shot(watched: Watched, name: str) -> None:
    if folder := os.environ.get("SHOTS"):
        watched.page.screenshot(path=f"{folder}/{name}.png")


def own_set(studio: Studio, folder: Path) -> str:
    id = ask(studio, "/sets", name="Circles to caption")["id"]
    for picture in draw_pictures(folder, 2).glob("*.png"):
        boundary = "limit"
        head = f'--{boundary}\r\ncontent-disposition: form-data; name="files"; filename="{picture.name}"\r\ncontent-type: image/png\r\n\r\n'
        body = head.encode() + picture.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
        urllib.request.urlopen(urllib.request.Request(f"{studio.address}/api/sets/{id}/pictures", body, headers), timeout=60).read()
    return id


def test_a_model_captions_a_set_and_undo_takes_it_back(watched: Watched, studio: Studio, tmp_path: Path) -> None:
    own_set(studio, tmp_path / "circles")
    model = tiny_blip(tmp_path)
    page = watched.page
    page.set_default_timeout(120_000)
    page.click(".st-setcard:has-text('Circles to caption')")
    filled = "[...document.querySelectorAll('.st-picture textarea')].filter((one) => one.value).length"
    page.wait_for_function("document.querySelectorAll('.st-picture textarea').length === 2")
    page.click(".st-sethead button")
    shot(watched, "caption-menu")
    page.click("[role=menuitem]:has-text('Write missing captions')")
    page.fill("dialog input[aria-label=Model]", str(model))
    shot(watched, "caption-dialog")
    page.click("dialog footer button")
    page.wait_for_function(f"{filled} === 2")
    shot(watched, "captioned")
    page.click(".st-toast button:has-text('Undo')")
    page.wait_for_function(f"{filled} === 0")
    assert watched.errors == []


@pytest.mark.long
def test_a_worker_that_stands_still_is_told_in_the_status_bar_and_the_queue(watched: Watched, studio: Studio) -> None:
    page = watched.page
    page.set_default_timeout(120_000)
    id = ask(studio, "/jobs/train", images="blueprint", base="demo-sdxl", name="stands-still", steps=100_000, save_every=0, resolution=64)["id"]
    watched.view("queue")
    page.wait_for_function(
        "/stands-still/.test(document.querySelector('.st-queue').textContent) && /\\d \\/ 100000/.test(document.querySelector('.st-queue').textContent)"
    )
    worker = WorkerFolder(studio.data / "workers", "cpu").state()
    assert worker is not None
    psutil.Process(worker.pid).send_signal(signal.SIGSTOP)
    try:
        page.wait_for_selector(".st-status > .st-status-item:has-text('processor · not responding')")
        page.wait_for_selector(".st-queue .is-job:has-text('stands-still') .st-row-progress:has-text('not responding')")
        shot(watched, "not-responding")
    finally:
        psutil.Process(worker.pid).send_signal(signal.SIGCONT)
    page.wait_for_function("!/not responding/.test(document.querySelector('.st-status').textContent)")
    ask(studio, f"/jobs/{id}/cancel")
    page.wait_for_selector(".st-queue .is-job:has-text('stands-still') .st-row-state:has-text('cancelled')")
    assert json.loads(urllib.request.urlopen(f"{studio.address}/api/jobs/{id}", timeout=20).read())["state"] == "cancelled"
