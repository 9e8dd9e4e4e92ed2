"""Claims about recipes: every number has its reason, every recipe is a run that could begin."""

import re

import pytest

from studio import families
from studio.config import TrainConfig, build
from studio.config.recipes import Recipe, differences, find, fits, recipes
from studio.config.training.objective import check_objective
from studio.errors import SettingsError

NAMES = [recipe.name for recipe in recipes()]


def test_there_are_recipes_for_every_family_and_purpose():
    assert {"sdxl-style", "sdxl-character", "sdxl-concept", "pony-character", "flux-style", "flux-character", "flux-concept"} <= set(NAMES)
    assert {recipe.family for recipe in recipes()} == set(families.FAMILIES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_a_run_of_its_family(name):
    recipe = find(name)
    config = build(TrainConfig, {"images": "x", **recipe.settings})
    facts = families.get(recipe.family).facts
    check_objective(facts.objective, config)
    assert len(recipe.about) > 30 and recipe.title


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_says_why_and_every_reason_has_a_source(name):
    """A public repository at a commit, a paper, a page named before, or our own reckoning, called ours."""
    recipe = find(name)
    assert recipe.why.keys() == recipe.settings.keys()
    source = re.compile(
        r"[\w.-]+/[\w.-]+|arXiv \d{4}\.\d{5}|^Ours: |the same (command|preset|example|page)|docs/|SimpleTuner|default of the script|the script sets|sd-scripts"
    )
    assert [setting for setting, reason in recipe.why.items() if not source.search(reason)] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_number_stands_in_its_own_reason(name):
    """So that a value cannot be changed without the reason beside it."""
    recipe = find(name)

    def said(value: float, reason: str) -> bool:
        written = {f"{value:g}", f"{value:.0e}".replace("e-0", "e-"), str(value)}
        return any(re.search(rf"(?<![\d.]){re.escape(text)}(?![\d.]*\d)", reason) for text in written)

    numbers = {setting: value for setting, value in recipe.settings.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    numbers |= {f"{setting} {one}": one for setting, value in recipe.settings.items() if setting == "more_resolutions" for one in value}
    assert numbers and [setting for setting, value in numbers.items() if not said(value, recipe.why[setting.split()[0]])] == []


# What the public presets and example commands that the recipes name say, read on 2026-11-23 at the commits that the recipes name.
PRESETS = {
    "sdxl-style": {"rank": 32, "alpha": 16, "learning_rate": 1e-4, "min_snr_gamma": 5.0, "noise_offset": 0.0357, "caption_dropout": 0.1},
    "sdxl-character": {"rank": 32, "alpha": 32, "learning_rate": 3e-5, "epochs": 50, "batch_size": 3, "min_snr_gamma": 5.0},
    "sdxl-concept": {"rank": 16, "alpha": 1.0, "learning_rate": 3e-4, "warmup_steps": 200, "epochs": 100, "batch_size": 4, "targets": "attention+mlp"},
    "pony-character": {"rank": 32, "alpha": 16, "learning_rate": 1.0, "optimizer": "prodigy", "weight_decay": 0.01, "optimizer_options": ["d0=1e-4"]},
    "flux-style": {"rank": 16, "alpha": 16, "learning_rate": 1e-4, "resolution": 768, "batch_size": 1, "steps": 2000},
    "flux-character": {"rank": 16, "alpha": 16, "resolution": 1024, "more_resolutions": [512, 768], "steps": 2000, "ema_decay": 0.99},
    "flux-concept": {"optimizer": "prodigy", "learning_rate": 1.0, "rank": 4, "alpha": 4, "resolution": 512, "gradient_accumulation": 4, "steps": 500},
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_says_what_its_sources_say_and_calls_everything_else_ours(name):
    recipe = find(name)
    assert {setting: recipe.settings.get(setting) for setting in PRESETS[name]} == PRESETS[name]
    assert [setting for setting in PRESETS[name] if recipe.why[setting].startswith("Ours")] == []
    trusted = {"learning_rate", "batch_size", "lr_schedule", "optimizer", "min_snr_gamma"}  # a second source each, named in the reason
    others = [setting for setting in recipe.settings if setting not in PRESETS[name] and setting not in trusted]
    assert [setting for setting in others if not recipe.why[setting].startswith("Ours")] == []


def test_a_run_is_compared_with_a_recipe_setting_by_setting():
    recipe = find("sdxl-style")
    run = build(TrainConfig, {"images": "x", **recipe.settings}).model_dump(mode="json")
    assert differences(recipe, run) == ()
    found = differences(recipe, {**run, "rank": 8, "seed": 5})
    assert [(one.setting, one.recipe, one.run) for one in found] == [("rank", 32, 8)]
    assert "sd-scripts" in found[0].why
    lists = Recipe("x", "", "flux", "", {"more_resolutions": [512, 768]}, {"more_resolutions": ""})
    assert differences(lists, {"more_resolutions": (512, 768)}) == ()


def test_every_recipe_has_its_presets_in_this_file():
    assert set(PRESETS) == set(NAMES)


def test_what_does_not_fit_is_told_with_the_way_out():
    with pytest.raises(SettingsError, match=r"'flux-stile' is unknown; did you mean 'flux-style'\?"):
        find("flux-stile")
    with pytest.raises(SettingsError, match="recipe flux-style is for flux, the base demo-sdxl is sdxl; there are pony-character"):
        fits(find("flux-style"), "sdxl", "demo-sdxl")
