"""Two tabs on one queue: what the one shows, the other shows at most three seconds later."""

import json
import re
import time
import urllib.request
from collections.abc import Callable

from playwright.sync_api import Page, Route, expect

from tests.e2e.conftest import Studio, Watched

AGREE = 3000  # milliseconds


def ask(studio: Studio, path: str, **body: object) -> dict[str, str]:
    request = urllib.request.Request(f"{studio.address}/api{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    return json.loads(urllib.request.urlopen(request, timeout=20).read())


def emptied(studio: Studio) -> None:
    """Nothing of these tests is left to run."""
    until = time.monotonic() + 60
    while waiting := json.load(urllib.request.urlopen(f"{studio.address}/api/jobs/queue", timeout=20))["items"]:
        assert time.monotonic() < until, waiting
        for job in reversed(waiting):
            ask(studio, f"/jobs/{job['id']}/cancel")
        time.sleep(0.5)


def test_two_tabs_agree_on_order_and_pauses(shared: Watched, studio: Studio) -> None:
    first, second = shared.page, shared.page.context.new_page()
    second.goto(studio.address)
    for page in (first, second):
        page.click(".st-rail-item[data-view=queue]")
    jobs = [ask(studio, "/jobs/train", images="blueprint", base="demo-sdxl", name=f"line-{name}", steps=2000, resolution=64)["id"] for name in "abcd"]
    shown = "[...document.querySelectorAll('.st-queue .is-job b')].map((one) => one.textContent).filter((one) => one.startsWith('line-')).join()"
    try:
        for page in (first, second):
            page.wait_for_function(f"{shown} === 'line-a,line-b,line-c,line-d'")

        def choose(name: str, what: str) -> None:
            first.click(f"button[aria-label='More for {name}'], button[title='More for {name}']")
            first.click(f"[role=menuitem]:has-text('{what}')")

        def both(wait: Callable[[Page], object]) -> None:
            wait(first)
            second.set_default_timeout(AGREE)
            wait(second)

        def order(names: str) -> None:
            both(lambda page: page.wait_for_function(f"{shown} === '{names}'"))

        def sees(name: str, what: str) -> None:
            both(lambda page: page.wait_for_selector(f".is-job:has-text('{name}') {what}"))

        choose("line-d", "Run next")
        order("line-a,line-d,line-b,line-c")
        choose("line-b", "Hold back")
        sees("line-b", ".st-row-state:has-text('paused')")
        order("line-a,line-d,line-c,line-b")
        choose("line-b", "Go on")
        sees("line-b", ".st-row-state:has-text('queued')")
        choose("line-c", "Priority up")
        order("line-a,line-c,line-d,line-b")
        sees("line-c", "small:has-text('priority 1')")
        first.context.grant_permissions(["clipboard-read", "clipboard-write"])
        choose("line-c", "Copy the command line")
        first.wait_for_selector(".st-toast:has-text('is copied')")
        assert first.evaluate("navigator.clipboard.readText()").startswith("lora-studio train --images blueprint --name line-c --steps 2000")
        choose("line-c", "Duplicate")
        first.wait_for_function(f"{shown}.split('line-c').length === 3")
        jobs += [row["id"] for row in json.load(urllib.request.urlopen(f"{studio.address}/api/jobs", timeout=20))["items"] if row["name"] == "line-c"]
        assert len(set(jobs)) == 5
        assert shared.errors == []
    finally:
        second.close()
        emptied(studio)


def test_a_job_that_was_made_while_an_older_list_was_on_its_way_stays(shared: Watched, studio: Studio) -> None:
    page = shared.page
    page.click(".st-rail-item[data-view=queue]")

    def train(name: str) -> str:
        return ask(studio, "/jobs/train", images="blueprint", base="demo-sdxl", name=name, steps=2000, resolution=64)["id"]

    made = [train("made-early")]  # runs, so that the other waits, and nothing more is told of it
    page.wait_for_selector(".is-job:has-text('made-early') .st-row-state:has-text('running')", timeout=60_000)
    page.wait_for_selector(".st-light[data-tone=good]")
    page.wait_for_load_state("networkidle")
    refresh = "performance.getEntriesByType('resource').find((one) => one.name.endsWith('/js/state.js')).name"

    def late(route: Route) -> None:
        if len(made) > 1:
            return route.continue_()
        answer = route.fetch()  # the list as it is now
        made.append(train("made-late"))
        time.sleep(1)  # and the page hears of the job before it gets it
        return route.fulfill(response=answer)

    page.route(re.compile(r"/api/jobs$"), late)
    try:
        page.evaluate(f"import({refresh}).then((state) => state.refresh('jobs'))")
        expect(page.locator(".st-queue .is-job b", has_text="made-late")).to_be_visible()
        assert len(made) == 2 and shared.errors == []
    finally:
        page.unroute(re.compile(r"/api/jobs$"))
        emptied(studio)
