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


def test_a_run_is_compared_with_a_recipe_setting_by_setting():
    recipe = find("sdxl-style")
    run = build(TrainConfig, {"images": "x", **recipe.settings}).model_dump(mode="json")
    assert differences(recipe, run) == ()
    found = differences(recipe, {**run, "rank": 8, "seed": 5})
    assert [(one.setting, one.recipe, one.run) for one in found] == [("rank", 32, 8)]
    assert "sd-scripts" in found[0].why
    lists = Recipe("x", "", "flux", "", {"more_resolutions": [512, 768]}, {"more_resolutions": ""})
    assert differences(lists, {"more_resolutions": (512, 768)}) == ()


def test_what_does_not_fit_is_told_with_the_way_out():
    with pytest.raises(SettingsError, match=r"'flux-stile' is unknown; did you mean 'flux-style'\?"):
        find("flux-stile")
    with pytest.raises(SettingsError, match="recipe flux-style is for flux, the base demo-sdxl is sdxl; there are pony-character"):
        fits(find("flux-style"), "sdxl", "demo-sdxl")
