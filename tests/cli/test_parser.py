"""Flags come from the settings classes; what is unknown is named, with the nearest known name."""

import argparse
from pathlib import Path

import pytest

from studio.cli import main
from studio.cli.flags import locate, settings_from
from studio.cli.parser import parse
from studio.config import GenerateConfig, LoraWeight, TrainConfig
from studio.errors import SettingsError


def train(*arguments: str) -> TrainConfig:
    return settings_from(TrainConfig, parse(["train", "--images", "x", *arguments]))


def generate(*arguments: str) -> GenerateConfig:
    return settings_from(GenerateConfig, parse(["generate", "--output", "x", *arguments]))


@pytest.mark.parametrize("name", sorted(TrainConfig.model_fields))
def test_every_training_setting_has_a_flag(name: str) -> None:
    assert f"--{name.replace('_', '-')}" in flags("train")


@pytest.mark.parametrize("name", sorted(GenerateConfig.model_fields))
def test_every_drawing_setting_has_a_flag(name: str) -> None:
    assert f"--{name.replace('_', '-')}" in flags("generate")


def flags(verb: str) -> set[str]:
    parser: argparse.ArgumentParser = parse([verb, "--output", "x"]).parser
    return {option for action in parser._actions for option in action.option_strings}


def test_values_get_the_types_of_the_settings() -> None:
    config = train("--rank", "8", "--learning-rate", "2e-3", "--flip", "--no-gradient-checkpointing", "--sample-prompts", "a cat", "--sample-prompts", "a dog")
    assert (config.rank, config.learning_rate, config.flip, config.gradient_checkpointing) == (8, 0.002, True, False)
    assert config.sample_prompts == ("a cat", "a dog")


def test_unnamed_settings_stay_open_for_the_base_to_fill() -> None:
    assert train() == TrainConfig(images="x")


def test_shorthands_become_settings() -> None:
    config = generate("--size", "128x192", "--lora", "style=0.8", "--lora", "mascot", "--seed", "-1")
    assert (config.width, config.height, config.seed) == (128, 192, -1)
    assert config.loras == (LoraWeight(name="style", weight=0.8), LoraWeight(name="mascot"))


def test_flags_win_over_the_settings_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('images = "elsewhere"\nrank = 4\nsteps = 20\nsample_prompts = ["a", "b"]\n')
    config = settings_from(TrainConfig, parse(["train", str(path), "--rank", "8"]))
    assert (config.images, config.rank, config.steps, config.sample_prompts) == ("elsewhere", 8, 20, ("a", "b"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--images", "x", "--rnak", "8"], "unknown setting '--rnak'; did you mean --rank?"),
        (["train", "--images", "x", "--rank", "many"], "setting rank 'many'"),
        (["train", "--images", "x", "--rank", "0"], "setting rank '0': input should be greater than or equal to 1"),
        (["train", "--images", "x", "--learning-rate", "nan"], "setting learning_rate"),
        (["train", "--images", "x", "--steps", "5", "--epochs", "2"], "steps and epochs are both given"),
        (["train"], "setting 'images' is missing"),
        (["train", "missing.toml"], "missing.toml: no such settings file"),
        (["train", "--images", "x", "--name", "../escape"], "setting name '../escape'"),
        (["generate", "--output", "x", "--size", "128"], "size '128' is not WIDTHxHEIGHT"),
        (["generate", "--output", "x", "--size", "128x128", "--width", "64"], "--size and --width are both given"),
        (["generate", "--prompt", "x"], "--output"),
        (["draw"], "invalid choice: 'draw'"),
        ([], "VERB"),
        (["serve", "--port", "70000"], "port 70000"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert words in said.err and len(said.err.strip().splitlines()) == 1
    assert said.out == ""


def test_unknown_and_broken_settings_files_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    for text, words in (('images = "x"\nrnak = 8\n', "did you mean 'rank'"), ("images = \n", "is not valid TOML")):
        path.write_text(text)
        assert main(["train", str(path)]) == 2
        said = capsys.readouterr().err
        assert words in said and len(said.strip().splitlines()) == 1


def test_a_name_of_the_studio_comes_before_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cats").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate("cats", lambda name: True) == "cats"
    assert locate("cats", lambda name: False) == str(tmp_path / "cats")
    assert locate("./cats", lambda name: True) == str(tmp_path / "cats")
    assert locate("nowhere", lambda name: False) == "nowhere"


def test_a_wrong_flag_can_raise_for_other_front_ends_too() -> None:
    with pytest.raises(SettingsError, match="see lora-studio train --help"):
        parse(["train", "--images"])
