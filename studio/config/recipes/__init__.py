"""Recipes: named starting points for a training run, each number with the reason for it and where it comes from.

A recipe is a TOML file in this folder: `title`, `family`, `about`, a table `settings`, and a table `why` with a line for every setting.
"""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from studio.errors import SettingsError

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """`settings`: by their names in TrainConfig; `why`: the same names, a line each."""

    name: str
    title: str
    family: str
    about: str
    settings: Mapping[str, Any]
    why: Mapping[str, str]


@dataclass(frozen=True)
class Difference:
    """One setting of a recipe that a run has otherwise."""

    setting: str
    recipe: Any
    run: Any
    why: str


@cache
def recipes() -> tuple[Recipe, ...]:
    """All of them, by name."""
    return tuple(_read(path) for path in sorted(FOLDER.glob("*.toml")))


def find(name: str) -> Recipe:
    """The recipe of this name. Raises SettingsError naming the nearest."""
    for recipe in recipes():
        if recipe.name == name:
            return recipe
    known = [recipe.name for recipe in recipes()]
    near = difflib.get_close_matches(name, known, n=1)
    raise SettingsError(f"recipe {name!r} is unknown" + (f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"))


def fits(recipe: Recipe, family: str, base: str) -> None:
    """Raise SettingsError if the recipe is for another kind of base."""
    if recipe.family != family:
        others = ", ".join(one.name for one in recipes() if one.family == family)
        raise SettingsError(f"recipe {recipe.name} is for {recipe.family}, the base {base} is {family}; there are {others or 'none for it'}")


def differences(recipe: Recipe, settings: Mapping[str, Any]) -> tuple[Difference, ...]:
    """What of the recipe a run has otherwise, in the order of the recipe. Settings that it says nothing of are nobody's business."""
    told = {name: settings.get(name) for name in recipe.settings}
    return tuple(Difference(name, value, told[name], recipe.why[name]) for name, value in recipe.settings.items() if not _same(value, told[name]))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return list(one) == list(other)
    return one == other


def _read(path: Path) -> Recipe:
    found = tomllib.loads(path.read_text(encoding="utf-8"))
    return Recipe(path.stem, found["title"], found["family"], found["about"], found["settings"], found["why"])
