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
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
WINDOW: ViewportSize = {"width": 1440, "height": 900}
COUNTED = "{const frame = requestAnimationFrame; window.framesAsked = 0; window.requestAnimationFrame = (act) => { framesAsked += 1; return frame(act); }}"
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
        page.on("console", lambda message: self.errors.append(f"{message.text} {message.location.get('url', '')}") if message.type == "error" else None)
        page.on("request", lambda request: self.foreign.append(request.url) if re.match("(http|ws)s?://", request.url) and own not in request.url else None)
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))

    def view(self, name: str) -> None:
        self.page.click(f".st-rail-item[data-view={name}]")
        self.page.wait_for_selector(f"#view-{name}", state="visible")


def opened(browser: Browser, studio: Studio, before: Callable[[Page], object] = lambda page: None, there: str = ".st-setcard") -> Watched:
    """A page of its own: nothing is kept in the browser. before: what is done to it before it loads; there: what it shows once it has."""
    context = browser.new_context(viewport=WINDOW, accept_downloads=True, reduced_motion="reduce")
    watched = Watched(context.new_page(), studio.address.removeprefix("http://"))
    watched.page.set_default_timeout(PATIENCE)
    watched.page.add_init_script(COUNTED)
    before(watched.page)
    watched.page.goto(studio.address)
    watched.page.wait_for_selector(there)
    return watched


@pytest.fixture
def watched(browser: Browser, studio: Studio) -> Iterator[Watched]:
    own = opened(browser, studio)
    yield own
    own.page.context.close()


@pytest.fixture(scope="module")
def _open() -> Iterator[list[Watched]]:
    pages: list[Watched] = []
    yield pages
    for one in pages:
        one.page.context.close()


@pytest.fixture
def shared(request: pytest.FixtureRequest, browser: Browser, studio: Studio, _open: list[Watched]) -> Iterator[Watched]:
    """One page for the tests of a module that do without a new one: to open it takes longer than most of them. One that fails takes its page along."""
    if not _open:
        _open.append(opened(browser, studio))
    one, failed = _open[0], request.session.testsfailed
    for heard in (one.errors, one.foreign, one.dialogs):
        heard.clear()
    yield one
    if request.session.testsfailed > failed:
        _open.remove(one)
        one.page.context.close()
