"""Claims about the Train form: settings are found by words, and a recipe fills them."""

from .conftest import Watched


def shown(page) -> set[str]:
    return set(page.eval_on_selector_all("#train-form .st-field", "all => all.filter((e) => e.offsetParent).map((e) => e.id)"))


def test_settings_are_found_by_their_words_wherever_they_stand(watched: Watched) -> None:
    page = watched.page
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
    assert watched.errors == []


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
