"""Recipes and sweeps on the command line."""

from studio.cli.flags import settings_from
from studio.cli.parser import parse
from studio.cli.recipes import beneath
from studio.config import TrainConfig


def config(*arguments: str) -> TrainConfig:
    given = parse(["train", "--images", "x", *arguments])
    return settings_from(TrainConfig, given, beneath(given.recipe, vars(given)))


def test_flags_win_over_a_recipe_and_steps_take_the_place_of_its_epochs():
    assert (config("--recipe", "sdxl-character").rank, config("--recipe", "sdxl-character").epochs) == (32, 50)
    own = config("--recipe", "sdxl-character", "--rank", "8", "--steps", "20")
    assert (own.rank, own.learning_rate, own.steps, own.epochs) == (8, 3e-5, 20, None)


def test_recipes_are_listed_shown_swept_and_compared(hosted, pictures):
    assert {"sdxl-style", "flux-character"} <= {line["name"] for line in hosted("recipes", "list", "--json").lines}
    shown = hosted("recipes", "show", "sdxl-style")
    assert shown.code == 0 and "0.0357" in shown.out and "sd-scripts" in shown.out
    small = ["--resolution", "64", "--steps", "2", "--batch-size", "2", "--sample-every", "2", "--sample-prompts", "sun"]
    done = hosted("train", "--recipe", "sdxl-style", "--images", pictures, *small, "--name", "sun", "--sweep", "rank=2,4", "--json")
    assert done.code == 0, done.err
    sweep = done.lines[-1]
    assert sweep["kind"] == "sweep" and len(sweep["jobs"]) == 2 and sweep["sheet"].endswith(".png")
    compared = hosted("recipes", "diff", "sun-rank-4", "sdxl-style", "--json")
    assert compared.code == 0, compared.err
    rows = {line["setting"]: (line["recipe"], line["run"]) for line in compared.lines}
    assert rows.keys() == {"rank", "steps", "batch_size"} and rows["rank"] == (32, 4)
    wrong = hosted("train", "--recipe", "flux-style", "--images", pictures)
    assert wrong.code == 2 and "recipe flux-style is for flux" in wrong.err
