"""Bad input: one line, exit 2, and nothing is made: no job, no adapter, no file."""

from pathlib import Path

import pytest

from tests.cli.conftest import CommandLine, Said


def refused(said: Said, words: str) -> None:
    assert said.code == 2, said.err
    assert words in said.err
    assert len(said.err.strip().splitlines()) == 1 and "Traceback" not in said.err
    assert said.out == ""


def untouched(studio: CommandLine) -> bool:
    left = [path for part in ("jobs", "adapters", "sets", "images") for path in (studio.data / part).iterdir()] if studio.data.exists() else []
    return left == []


def test_an_empty_folder(tmp_path: Path) -> None:
    """By a process that begins from nothing: what the libraries say while they are loaded would be a second line."""
    studio = CommandLine(tmp_path / "data")
    (tmp_path / "set").mkdir()
    refused(studio("train", "--images", tmp_path / "set", "--json"), "there is no picture in it")
    assert untouched(studio)


def test_a_folder_that_is_not_there(studio: CommandLine, tmp_path: Path) -> None:
    refused(studio("train", "--images", tmp_path / "nowhere"), "neither a set in the studio nor a folder")
    assert untouched(studio)


def test_a_fake_picture(studio: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "fake.jpg").write_text("<html>not a picture</html>")
    refused(studio("train", "--images", tmp_path / "set"), "fake.jpg: this is a web page, not a picture")
    assert untouched(studio)


def test_a_truncated_picture(hosted: CommandLine, pictures: Path, tmp_path: Path) -> None:
    """Its header is whole, so only decoding shows it: the run ends before its first step and leaves no LoRA."""
    (tmp_path / "set").mkdir()
    whole = (pictures / "sun-0.png").read_bytes()
    (tmp_path / "set" / "half.png").write_bytes(whole[: len(whole) // 2])
    said = hosted("train", "--images", tmp_path / "set", "--output", tmp_path / "x.safetensors", "--json")
    assert said.code == 2, said.err
    assert said.lines[-1]["kind"] == "failed" and "half.png" in said.lines[-1]["message"]
    assert not [line for line in said.lines if line["kind"] in ("step", "checkpoint", "exported")]
    assert not (tmp_path / "x.safetensors").exists() and not list((hosted.data / "adapters").iterdir())


def test_an_unknown_base(studio: CommandLine, pictures: Path) -> None:
    refused(studio("train", "--images", pictures, "--base", "demo-sdxxl"), "base 'demo-sdxxl' is not known; known are demo-flux, demo-sdxl")
    assert untouched(studio)


def test_a_base_that_is_no_model(studio: CommandLine, pictures: Path) -> None:
    refused(studio("train", "--images", pictures, "--base", pictures), f"{pictures}: is no base model (no model_index.json)")
    assert untouched(studio)


def test_an_output_that_cannot_be_written(studio: CommandLine, pictures: Path) -> None:
    refused(studio("train", "--images", pictures, "--output", "/proc/nowhere/x.safetensors"), "output /proc/nowhere/x.safetensors cannot be written")
    assert untouched(studio)


def test_an_output_that_is_no_safetensors_file(studio: CommandLine, pictures: Path, tmp_path: Path) -> None:
    refused(studio("train", "--images", pictures, "--output", tmp_path / "x.ckpt"), "x.ckpt: the file's name must end in .safetensors")
    assert untouched(studio) and not (tmp_path / "x.ckpt").exists()


def test_a_folder_for_pictures_that_cannot_be_made(studio: CommandLine) -> None:
    refused(studio("generate", "--prompt", "a cat", "--output", "/proc/nowhere"), "output /proc/nowhere cannot be written")
    assert untouched(studio)


def test_a_lora_that_is_not_there(studio: CommandLine, tmp_path: Path) -> None:
    refused(
        studio("generate", "--prompt", "a cat", "--lora", "ghost=0.5", "--output", tmp_path / "out"),
        "LoRA 'ghost' is neither in the library nor a .safetensors file",
    )
    assert untouched(studio) and not (tmp_path / "out").exists()


def test_a_file_that_is_no_lora(studio: CommandLine, tmp_path: Path) -> None:
    fake = tmp_path / "fake.safetensors"
    fake.write_text("not a safetensors file")
    words = "fake.safetensors: is a text file, not a file of weights"
    refused(studio("inspect", fake), words)
    refused(studio("library", "add", fake), words)
    refused(studio("export", fake, "--output", tmp_path / "out.safetensors"), words)
    assert untouched(studio) and not (tmp_path / "out.safetensors").exists()


def test_a_run_that_is_not_there(studio: CommandLine, tmp_path: Path) -> None:
    refused(studio("export", "ghost", "--output", tmp_path / "out.safetensors"), "LoRA 'ghost' is neither in the library")
    refused(studio("train", "--resume", "ghost"), "no job 'ghost'")
    refused(studio("jobs", "show", "ghost"), "no job 'ghost'")
    assert untouched(studio) and not (tmp_path / "out.safetensors").exists()


def test_resuming_with_other_settings(studio: CommandLine) -> None:
    refused(studio("train", "--resume", "x", "--rank", "4"), "leave out rank")


BUILT_IN = {"library": set(), "images": {"Blueprint", "Tilo", "Woodcut"}, "jobs": set(), "base": {"demo-flux", "demo-sdxl"}}


@pytest.mark.parametrize("noun", BUILT_IN)
def test_every_list_of_a_new_data_folder_holds_what_the_studio_brings(studio: CommandLine, noun: str) -> None:
    said = studio(noun, "list", "--json")
    assert said.code == 0, said.err
    assert {line["name"] for line in said.lines} == BUILT_IN[noun]


def test_a_data_folder_that_cannot_be_made(studio: CommandLine) -> None:
    refused(studio("jobs", "list", "--data", "/proc/nowhere"), "--data or STUDIO_DATA")
