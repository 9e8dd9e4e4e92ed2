"""recipes: starting points with the reason for every number."""

import argparse
from collections.abc import Mapping
from typing import Any

from studio.cli.opening import opened
from studio.cli.output import emit, listing, values
from studio.config.recipes import differences, find, recipes


def list_recipes(arguments: argparse.Namespace) -> int:
    rows = [{"name": one.name, "family": one.family, "about": one.about} for one in recipes()]
    return listing(rows, {"NAME": "name", "FAMILY": "family", "WHAT FOR": "about"}, as_json=arguments.json, empty="No recipes.")


def show(arguments: argparse.Namespace) -> int:
    recipe = find(arguments.name)
    if arguments.json:
        emit(values(recipe))
        return 0
    print(f"{recipe.title}: {recipe.about}")
    return listing(_rows(recipe.settings, recipe.why), {"SETTING": "setting", "VALUE": "value", "WHY": "why"}, as_json=False, empty="")


def diff(arguments: argparse.Namespace) -> int:
    recipe = find(arguments.recipe)
    with opened(arguments) as workspace:
        found = differences(recipe, workspace.jobs.show(arguments.run_name).settings)
    rows = [{"setting": one.setting, "recipe": one.recipe, "run": one.run, "why": one.why} for one in found]
    columns = {"SETTING": "setting", "RECIPE": "recipe", "RUN": "run", "WHY IN THE RECIPE": "why"}
    return listing(rows, columns, as_json=arguments.json, empty=f"The run is as recipe {recipe.name} says.")


def beneath(name: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe, for those given to lie on: one of steps and epochs takes the place of the other."""
    if not name:
        return {}
    settings = dict(find(name).settings)
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        if one in given:
            settings.pop(other, None)
    return settings


def _rows(settings: Mapping[str, Any], why: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"setting": name, "value": value, "why": why[name]} for name, value in settings.items()]
