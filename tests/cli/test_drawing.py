"""Presets, recall and pictures to start from, on the command line."""

from pathlib import Path

from PIL import Image

from tests.cli.conftest import CommandLine

SMALL = ("--size", "64x64", "--steps", "2")


def drawn(studio: CommandLine, folder: Path, *arguments: str | Path) -> Path:
    said = studio("generate", "--json", "--output", folder, *arguments)
    assert said.code == 0, said.err
    return Path(next(line["path"] for line in said.lines if line["kind"] == "image"))


def test_a_preset_and_a_recalled_picture_fill_in_what_is_not_given(hosted: CommandLine, tmp_path: Path) -> None:
    assert hosted("presets", "save", "Ink", "--prompt", "{prompt}, blueprint style", "--steps", "2", "--format", "webp").code == 0
    assert "Ink: {prompt}, blueprint style, steps 2, format webp" in hosted("presets", "list").out
    first = drawn(hosted, tmp_path / "a", "--preset", "Ink", "--prompt", "cat {face|paw}", "--seed", "4", "--size", "64x64")
    assert first.suffix == ".webp"
    again = drawn(hosted, tmp_path / "b", "--recall", first)
    assert again.read_bytes() == first.read_bytes()
    other = drawn(hosted, tmp_path / "c", "--recall", first, "--init-image", first, "--strength", "0.5", "--format", "png")
    with Image.open(other) as image:
        assert ", blueprint style" in image.info["parameters"] and "Denoising strength: 0.5, Init image hash" in image.info["parameters"]
    assert hosted("generate", "--preset", "absent", "--output", tmp_path / "d").err.strip().endswith("no preset 'absent'; known are Ink")


def test_a_grid_leaves_every_cell_and_the_sheet(hosted: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "grid"
    said = hosted("generate", "--json", "--output", folder, "--prompt", "cat face", *SMALL, "--seed", "2", "--grid", "seed=2,3", "--grid", "prompt:cat=cat,fox")
    assert said.code == 0, said.err
    cells = [line for line in said.lines if line["kind"] == "image"]
    assert [(line["settings"]["seed"], line["settings"]["prompt"]) for line in cells] == [(2, "cat face"), (3, "cat face"), (2, "fox face"), (3, "fox face")]
    sheet = next(line["path"] for line in said.lines if line["kind"] == "sheet")
    assert len(list(folder.glob("*.png"))) == 5 and Image.open(sheet).width > 128
    refused = hosted("generate", "--output", folder, "--grid", "colour=1,2")
    assert refused.code == 2 and "is no axis of a grid" in refused.err and refused.err.count("\n") == 1
