"""The frame around everything: quiet, closed, keyboard-friendly, and aware of the server."""

import json
import urllib.parse
import urllib.request

import pytest
from playwright.sync_api import expect

from .conftest import WINDOW

VIEWS = ("train", "generate", "library", "queue", "help")
HOSTILE = "<img src=x onerror=alert(1)>${alert(2)}"


def post(address: str, path: str, body: dict) -> dict:
    request = urllib.request.Request(f"{address}/api{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def test_the_page_is_there_soon(studio) -> None:
    # 5 s is the promise on two idle cores; the bound leaves room for a busy test machine
    assert studio.first_answer_seconds < 20


def test_every_view_is_quiet_asks_nobody_and_does_not_scroll(shared) -> None:
    for view in VIEWS:
        shared.view(view)
        shared.page.wait_for_timeout(150)
        sizes = shared.page.evaluate("[document.documentElement.scrollHeight - innerHeight, document.documentElement.scrollWidth - innerWidth]")
        assert sizes == [0, 0], view
    assert (shared.errors, shared.foreign) == ([], [])


def test_gradios_markup_is_still_what_our_style_sheet_reaches_into(shared) -> None:
    """Selectors of gradio.css, view by view; after an upgrade of gradio this says which one is gone."""
    page = shared.page
    shared.view("train")
    for selector in (
        "gradio-app > .gradio-container",
        ".st-slot > .html-container",
        ".st-fields > .form > .st-field",
        '.st-field [data-testid="block-info"]',
        ".st-field .info-text",
        ".st-field .wrap-inner",
    ):
        assert page.locator(selector).count() > 0, selector
    assert page.locator(".gradio-container footer:not(.st-status)").evaluate_all("(all) => all.filter((one) => one.offsetHeight).length") == 0
    slot, content = page.eval_on_selector(
        "#train-run",
        "(node) => [node.getBoundingClientRect(), node.querySelector('.st-panel').getBoundingClientRect()].map((box) => [box.x, box.width, box.height])",
    )
    assert slot == content
    assert page.locator(".st-field .info-text").first.evaluate("(node) => getComputedStyle(node).visibility") == "hidden"
    shared.view("help")
    assert page.locator("#help-text .prose").count() > 0


def test_a_page_in_which_nothing_happens_draws_nothing(shared) -> None:
    still = """async () => {
      for (let look = 0; look < 100; look += 1) {
        const before = framesAsked;
        await new Promise((go) => setTimeout(go, 200));
        if (framesAsked === before) return true;
      }
      return false;
    }"""
    assert shared.page.evaluate("framesAsked") > 0, "frames are not counted"
    assert shared.page.evaluate(still)


def test_fonts_are_our_own_in_every_weight(shared) -> None:
    loaded = shared.page.evaluate(
        "document.fonts.ready.then(() => [...document.fonts].filter((font) => font.status === 'loaded').map((font) => font.family.replaceAll('\"', '')))"
    )
    assert set(loaded) <= {"Studio Sans", "Studio Mono"}
    assert "Studio Sans" in loaded


def test_what_is_chosen_by_keys_and_typed_in_survives_a_reload(watched) -> None:
    """View, command and theme by keyboard; a splitter; settings."""
    page = watched.page
    watched.view("train")
    before = page.locator("#train-pictures").bounding_box()["width"]
    page.locator("#split-pictures [role=separator]").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.locator("#train-pictures").bounding_box()["width"] == before + 48
    watched.view("generate")
    page.locator("#generate-prompt textarea").fill("a lighthouse")
    page.locator("#generate-guidance :is(input, textarea)").fill("6.5")
    page.wait_for_function("JSON.parse(localStorage.getItem('studio.form.generate') ?? '{}').guidance === '6.5'")
    page.locator("body").click(position={"x": 20, "y": 400})
    page.keyboard.press("3")
    expect(page.locator("#view-library")).to_be_visible()
    page.keyboard.press("Control+k")
    page.get_by_role("combobox", name="Find a command").fill("dark and")
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.reload()
    page.wait_for_selector(".st-rail")
    assert page.evaluate("[document.documentElement.dataset.theme, document.body.classList.contains('dark')]") == ["light", False]
    expect(page.locator("#view-library")).to_be_visible()
    expect(page.locator("#generate-prompt textarea")).to_have_value("a lighthouse")
    expect(page.locator("#generate-guidance :is(input, textarea)")).to_have_value("6.5")
    expect(page.locator("#generate-steps :is(input, textarea)")).to_have_attribute("placeholder", "20")
    watched.view("train")
    page.wait_for_selector(".st-setcard")
    assert page.locator("#train-pictures").bounding_box()["width"] == before + 48


def test_a_wrong_setting_is_told_in_one_line(shared) -> None:
    page = shared.page
    shared.view("generate")
    page.locator("#generate-prompt textarea").fill("a cat")
    page.locator("#generate-guidance :is(input, textarea)").fill("much")
    page.get_by_role("button", name="Generate", exact=True).last.click()
    expect(page.locator(".st-toast.is-bad")).to_contain_text("guidance")


def test_hostile_names_are_shown_as_text(shared, studio) -> None:
    made = post(studio.address, "/sets", {"name": HOSTILE, "trigger": HOSTILE})
    page = shared.page
    try:
        shared.view("train")
        card = page.locator(".st-setcard", has_text=HOSTILE)
        card.click()
        expect(page.locator(".st-sethead h3")).to_have_text(HOSTILE)
        expect(page.locator("#train-trigger :is(input, textarea)")).to_have_value(HOSTILE)
        expect(page.locator(".st-why:visible")).to_contain_text("drop pictures")
        shared.view("generate")
        page.locator("#generate-prompt textarea").fill(HOSTILE)
        page.evaluate(
            f"import(document.querySelector('link[rel=modulepreload]').href.replace('shell.js', 'toasts.js')).then((m) => m.toast({json.dumps(HOSTILE)}))"
        )
        expect(page.locator(".st-toast strong", has_text=HOSTILE)).to_be_visible()
        assert page.locator("img[src=x]").count() == 0
        assert shared.dialogs == []
    finally:
        urllib.request.urlopen(urllib.request.Request(f"{studio.address}/api/sets/{urllib.parse.quote(made['id'])}", method="DELETE"))


def test_seven_tabs_work_at_once(shared, studio) -> None:
    """A browser opens six connections to one place: tabs that each hold one for what is told would starve the seventh."""
    first = shared.page
    script = first.evaluate("document.querySelector('link[rel=modulepreload]').href.replace('shell.js', 'stream.js')")
    others = [first.context.new_page() for _ in range(5)]
    for page in others:  # as much of a tab as holds a connection
        page.goto(f"{studio.address}/favicon.ico")
        page.evaluate(f"import({json.dumps(script)}).then((stream) => stream.connect())")
        page.wait_for_function("sessionStorage['studio.boot']")  # the studio has said hello
    seventh = first.context.new_page()
    seventh.goto(studio.address)
    seventh.wait_for_selector(".st-light[data-tone=good]")
    made = post(studio.address, "/sets", {"name": "told to all"})
    try:
        for page in (first, seventh):
            page.click(".st-rail-item[data-view=train]")
            expect(page.locator(".st-setcard", has_text="told to all")).to_be_visible()
    finally:
        urllib.request.urlopen(urllib.request.Request(f"{studio.address}/api/sets/{made['id']}", method="DELETE"))
    for page in (*others, seventh):
        page.close()


@pytest.mark.parametrize("width", [390])
def test_a_narrow_window_has_no_sideways_scroll(shared, width: int) -> None:
    shared.page.set_viewport_size({"width": width, "height": 844})
    for view in VIEWS:
        shared.view(view)
        assert shared.page.evaluate("document.documentElement.scrollWidth") <= width, view
    shared.page.set_viewport_size(WINDOW)


def test_a_restart_is_noticed_and_the_page_goes_on(watched, studio) -> None:
    page = watched.page
    page.wait_for_selector(".st-light[data-tone=good]")
    watched.view("train")
    expect(page.locator(".st-fits-verdict .st-badge")).to_be_visible()  # nothing is asked of the studio any more
    studio.tell_to_stop()
    expect(page.locator(".st-toast", has_text="does not answer")).to_be_visible()
    studio.stopped()
    studio.start()
    expect(page.locator(".st-toast", has_text="was restarted")).to_be_visible()
    made = post(studio.address, "/sets", {"name": "after the restart"})
    watched.view("train")
    expect(page.locator(".st-setcard", has_text="after the restart")).to_be_visible()
    urllib.request.urlopen(urllib.request.Request(f"{studio.address}/api/sets/{made['id']}", method="DELETE"))
