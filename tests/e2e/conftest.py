"""A real studio in its own process and a real Chromium before it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
START_SECONDS = 120
PATIENCE = 60_000  # milliseconds that a page may take on a machine that does much else; only a failure takes as long
expect.set_options(timeout=PATIENCE)


class Studio:
    """A running `lora-studio serve` on a data folder."""

    def __init__(self, data: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.data = data
        self.address = f"http://127.0.0.1:{self.port}"
        self.first_answer_seconds = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "studio", "serve", "--port", str(self.port), "--data", str(self.data), "--no-browser"]
        begun = time.monotonic()
        self._process = subprocess.Popen(command, cwd=Path(__file__).parents[2], env={**os.environ, "STUDIO_DEVICE": "cpu"})
        while time.monotonic() - begun < START_SECONDS:
            try:
                with urllib.request.urlopen(f"{self.address}/?__theme=dark", timeout=5):
                    self.first_answer_seconds = time.monotonic() - begun
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the studio did not answer")

    def tell_to_stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Without waiting until it has: what a page then shows may be gone before a busy machine is done."""
        if self._process is not None:
            self._process.send_signal(how)

    def stopped(self) -> None:
        if self._process is not None:
            self._process.wait(60)
            self._process = None

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.tell_to_stop(how)
        self.stopped()


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    running = Studio(tmp_path_factory.mktemp("studio") / "data")
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.fail("there is no Chromium or Chrome on this machine; install one (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Watched:
    """A page and what went wrong on it."""

    def __init__(self, page: Page, own: str) -> None:
        self.page = page
        self.errors: list[str] = []
        self.foreign: list[str] = []
        self.dialogs: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: self.foreign.append(request.url) if re.match("(http|ws)s?://", request.url) and own not in request.url else None)
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))

    def view(self, name: str) -> None:
        self.page.click(f".st-rail-item[data-view={name}]")
        self.page.wait_for_selector(f"#view-{name}", state="visible")


@pytest.fixture
def watched(browser: Browser, studio: Studio) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    opened = Watched(context.new_page(), studio.address.removeprefix("http://"))
    opened.page.set_default_timeout(PATIENCE)
    opened.page.goto(studio.address)
    opened.page.wait_for_selector(".st-setcard")
    yield opened
    context.close()
