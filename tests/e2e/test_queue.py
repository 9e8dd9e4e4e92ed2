"""Two tabs on one queue: what one does, the other shows within three seconds."""

import json
import urllib.request

from tests.e2e.conftest import Studio, Watched

AGREE = 3000  # milliseconds


def ask(studio: Studio, path: str, **body: object) -> dict[str, str]:
    request = urllib.request.Request(f"{studio.address}/api{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    return json.loads(urllib.request.urlopen(request, timeout=20).read())


def test_two_tabs_agree_on_order_and_pauses(watched: Watched, studio: Studio) -> None:
    first, second = watched.page, watched.page.context.new_page()
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

        choose("line-d", "Run next")
        second.wait_for_function(f"{shown} === 'line-a,line-d,line-b,line-c'", timeout=AGREE)
        choose("line-b", "Hold back")
        second.wait_for_selector(".is-job:has-text('line-b') .st-row-state:has-text('paused')", timeout=AGREE)
        second.wait_for_function(f"{shown} === 'line-a,line-d,line-c,line-b'", timeout=AGREE)
        choose("line-b", "Go on")
        second.wait_for_selector(".is-job:has-text('line-b') .st-row-state:has-text('queued')", timeout=AGREE)
        choose("line-c", "Priority up")
        second.wait_for_function(f"{shown} === 'line-a,line-c,line-d,line-b'", timeout=AGREE)
        second.wait_for_selector(".is-job:has-text('line-c') small:has-text('priority 1')", timeout=AGREE)
        first.context.grant_permissions(["clipboard-read", "clipboard-write"])
        choose("line-c", "Copy the command line")
        first.wait_for_selector(".st-toast:has-text('is copied')")
        assert first.evaluate("navigator.clipboard.readText()").startswith("lora-studio train --images blueprint --name line-c --steps 2000")
        choose("line-c", "Duplicate")
        first.wait_for_function("document.querySelectorAll('.st-queue .is-job').length > 4")
        jobs += [row["id"] for row in json.load(urllib.request.urlopen(f"{studio.address}/api/jobs", timeout=20))["items"] if row["name"] == "line-c"]
        assert len(set(jobs)) == 5
        assert watched.errors == []
    finally:
        for id in reversed(list(dict.fromkeys(jobs))):
            ask(studio, f"/jobs/{id}/cancel")
        first.wait_for_function("document.querySelectorAll('.st-queue [aria-label^=Cancel]').length === 0", timeout=60_000)
