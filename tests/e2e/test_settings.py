"""Claims about the Train form: settings are found by words, a recipe fills them, and several values of one are several runs."""

import json
import time
import urllib.request

from playwright.sync_api import Browser, Page, Route, expect

from .conftest import Studio, Watched, opened


def shown(page) -> set[str]:
    return set(page.eval_on_selector_all("#train-form .st-field", "all => all.filter((e) => e.offsetParent).map((e) => e.id)"))


def test_settings_are_found_by_their_words_wherever_they_stand(shared: Watched) -> None:
    page = shared.page
    before = shown(page)
    page.fill("#train-search input", "shuffl")
    page.wait_for_selector("#train-caption_shuffle", state="visible")
    found = shown(page)
    assert "train-caption_shuffle" in found and "train-keep_tokens" in found and "train-rank" not in found
    titles = page.eval_on_selector_all("#train-advanced > .st-grouptitle h4", "all => all.filter((e) => e.offsetParent).map((e) => e.textContent.trim())")
    assert titles == ["Pictures and captions"]
    page.fill("#train-search input", "no such thing")
    page.wait_for_selector(".st-search-none", state="visible")
    page.press("#train-search input", "Escape")
    assert shown(page) == before
    assert shared.errors == []


def test_a_recipe_fills_the_form_and_one_of_another_family_does_not(watched: Watched) -> None:
    page = watched.page
    page.select_option("#train-recipe select", "sdxl-style")
    page.wait_for_function("document.querySelector('#train-learning_rate input, #train-learning_rate textarea').value === '0.0001'")
    assert page.input_value("#train-rank input, #train-rank textarea") == "32"
    page.fill("#train-search input", "offset")
    page.wait_for_selector("#train-noise_offset", state="visible")
    assert page.input_value("#train-noise_offset input, #train-noise_offset textarea") == "0.0357"
    assert "pictures of different things" in page.text_content("#train-recipe")
    page.press("#train-search input", "Escape")
    page.select_option("#train-recipe select", "flux-style")
    page.wait_for_selector("text=That recipe does not fit")
    assert page.input_value("#train-recipe select") == "sdxl-style"
    assert watched.errors == []


def slowly(page: Page, path: str, milliseconds: int = 1500) -> list[str]:
    """Answers from that path come late; the requests so far."""
    asked: list[str] = []

    def late(route: Route) -> None:
        asked.append(route.request.post_data or "")
        time.sleep(milliseconds / 1000)
        route.continue_()

    page.route(path, late)
    return asked


def test_what_is_written_while_the_studio_fills_the_form_stays(watched: Watched) -> None:
    """A set's name and trigger come a moment after it is chosen: the field that a person writes into meanwhile is theirs."""
    page = watched.page
    name, trigger = (page.locator(f"#train-{field} :is(input, textarea)") for field in ("name", "trigger"))
    page.locator(".st-setcard", has_text="Blueprint").click()  # others may have made a newer one, which is what a new page takes
    expect(name).to_have_value("Blueprint")
    expect(trigger).to_have_value("blueprint style")
    asked = slowly(page, "**/gradio_api/**")
    slowly(page, "**/api/sets/*", 500)  # the field is written into before even the set has come
    page.locator(".st-setcard", has_text="Tilo").click()
    with page.expect_response(lambda response: "choose_set" in (response.request.post_data or "")):
        name.fill("my own")
    expect(trigger).not_to_have_value("blueprint style")
    assert any("choose_set" in text for text in asked)
    expect(name).to_have_value("my own")
    page.unroute("**/gradio_api/**")
    assert watched.errors == []


def test_what_is_written_before_a_set_is_chosen_stays(browser: Browser, studio: Studio) -> None:
    with urllib.request.urlopen(f"{studio.address}/api/sets") as answer:
        [blueprint] = [one["id"] for one in json.load(answer)["items"] if one["name"] == "Blueprint"]

    def before(page: Page) -> None:
        page.add_init_script(f"localStorage.setItem('studio.set', '\"{blueprint}\"')")  # chosen at the last visit
        slowly(page, "**/api/sets")

    watched = opened(browser, studio, before=before, there="#train-name")
    page = watched.page
    page.locator("#train-name :is(input, textarea)").fill("my own")
    expect(page.locator("#train-trigger :is(input, textarea)")).to_have_value("blueprint style")
    expect(page.locator("#train-name :is(input, textarea)")).to_have_value("my own")
    assert watched.errors == []
    page.context.close()


def test_a_sweep_is_started_and_compared_and_a_run_held_against_a_recipe(watched: Watched, studio: Studio) -> None:
    page = watched.page
    watched.view("train")
    for name, value in (("name", "swept"), ("steps", "2"), ("resolution", "64"), ("batch_size", "1"), ("sample_every", "2"), ("sample_prompts", "a cat")):
        if name == "batch_size":
            page.click("#train-fold .st-fold")
        page.locator(f"#train-{name} :is(input, textarea)").fill(value)
    page.get_by_role("button", name="Sweep", exact=True).click()
    box = page.get_by_role("dialog", name="Sweep over settings")
    go = box.get_by_role("button", name="Start")
    expect(go).to_have_attribute("aria-disabled", "true")
    box.get_by_label("Setting 1").select_option("rank")
    box.get_by_label("Values 1").fill("2, many")
    expect(box).to_contain_text("2 runs, all with one seed")
    go.click()
    expect(box.get_by_role("alert")).to_contain_text("setting rank 'many'")
    box.get_by_label("Values 1").fill("2, 4")
    go.click()
    page.locator(".st-toast", has_text="2 runs are in the queue").get_by_role("button", name="Compare").click()
    expect(page.get_by_role("dialog").get_by_role("heading")).to_have_text("Sweep of swept")
    table = page.get_by_role("dialog", name="Sweep of swept")
    expect(table.locator("tbody tr")).to_have_count(2)
    expect(table.locator("tbody tr button").first).to_have_text("rank 2")
    expect(table.locator(".st-badge", has_text="finished")).to_have_count(2, timeout=120_000)
    expect(table.locator("img")).to_have_count(2, timeout=20_000)
    sheet = table.get_by_role("link", name="As one picture").get_attribute("href")
    assert urllib.request.urlopen(f"{studio.address}{sheet}").headers["content-type"] == "image/png"
    table.get_by_role("button", name="rank 4", exact=True).click()
    expect(page.locator(".st-run-name")).to_contain_text("swept-rank-4")
    expect(page.get_by_role("button", name="Compare 2 runs")).to_be_visible()
    page.locator("summary", has_text="Against a recipe").click()
    page.get_by_label("Recipe to compare with").select_option("sdxl-style")
    expect(page.locator("details[open] tr", has_text="rank").first).to_contain_text("4")
    assert (watched.errors, watched.foreign) == ([], [])


def test_a_card_is_chosen_and_the_page_says_whether_the_run_fits(shared: Watched) -> None:
    page = shared.page
    page.wait_for_selector("#train-fits .st-badge.is-good")
    page.select_option("#train-fits select", "8")
    page.wait_for_function("document.querySelector('#train-fits .st-fits-verdict').textContent.includes('of 8.0 GB')")
    page.click("#train-fits summary")
    assert "Frozen base" in page.inner_text("#train-fits") and "Recomputed blocks" in page.inner_text("#train-fits")
    page.select_option("#train-fits select", "")
    page.wait_for_function("!document.querySelector('#train-fits .st-fits-verdict').textContent.includes('of 8.0 GB')")
    assert shared.errors == []
