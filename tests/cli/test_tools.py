"""merge, resize, extract and bake as a script calls them."""

from pathlib import Path

import pytest

from studio.lora import formats
from tests.cli.conftest import CommandLine
from tests.jobs.test_tools import MODULE, lora


def test_files_are_merged_baked_and_extracted_by_command(hosted: CommandLine, tmp_path: Path) -> None:
    lora(tmp_path / "a.safetensors", 1), lora(tmp_path / "b.safetensors", 2)
    said = hosted("merge", "a.safetensors=0.8", "b.safetensors=-0.5", "--output", "m.safetensors", "--dtype", "fp32", "--json", cwd=tmp_path)
    assert said.code == 0, said.err
    assert [line["kind"] for line in said.lines if line["kind"] != "loading"] == ["submitted", "exported", "finished"]
    assert said.lines[-1]["result"]["ranks"] == [8, 8] and said.lines[-1]["result"]["residual"] == 0
    a, b, merged = (formats.read(tmp_path / f"{name}.safetensors").layers[MODULE].delta() for name in "abm")  # type: ignore[call-arg]
    assert float((merged - 0.8 * a + 0.5 * b).norm() / merged.norm()) < 1e-5

    said = hosted("bake", "--base", "demo-sdxl", "--lora", "m.safetensors", "--output", "c.safetensors", "--dtype", "fp32", cwd=tmp_path)
    assert said.code == 0 and f"wrote {tmp_path / 'c.safetensors'}" in said.err, said.err
    said = hosted("extract", "c.safetensors", "--base", "demo-sdxl", "--rank", "8", "--name", "back", cwd=tmp_path)
    assert said.code == 0 and "1 layer of rank 8; " in said.err, said.err
    said = hosted("resize", "back", "--energy", "0.5", "--output", "r.safetensors", cwd=tmp_path)
    assert said.code == 0 and formats.read(tmp_path / "r.safetensors").layers[MODULE].rank < 8, said.err
    assert [line["name"] for line in hosted("library", "list", "--json").lines] == ["back"], "a named file stays where it was asked for"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["resize", "a.safetensors"], "name a rank or an energy, one of them"),
        (["resize", "a.safetensors", "--rank", "many"], "setting rank 'many'"),
        (["merge", "a.safetensors", "f.safetensors", "--output", "x.safetensors"], "only LoRAs for the same kind of base can be merged"),
        (["merge", "a.safetensors", "--output", "x.ckpt"], "must end in .safetensors"),
        (["bake", "--base", "demo-flux", "--lora", "a.safetensors", "--output", "x.safetensors"], "choose another base or LoRA"),
        (["extract", "demo-flux", "--base", "demo-sdxl"], "name a base of the same family"),
    ],
)
def test_bad_input_is_one_line(studio: CommandLine, tmp_path: Path, words: list[str], told: str) -> None:
    lora(tmp_path / "a.safetensors", 1), lora(tmp_path / "f.safetensors", 1, "flux")
    said = studio(*words, cwd=tmp_path)
    assert said.code == 2 and told in said.err and len(said.err.strip().splitlines()) == 1, said.err
    assert not (tmp_path / "x.safetensors").exists()


def test_a_stack_is_checked_by_command(hosted: CommandLine, tmp_path: Path) -> None:
    lora(tmp_path / "a.safetensors", 1), lora(tmp_path / "b.safetensors", 2)
    said = hosted("stack", "check", "a.safetensors", "b.safetensors=0.5", "--base", "demo-sdxl", cwd=tmp_path)
    assert said.code == 0 and said.out.startswith(("fine", "watch")) and "a: 1 of 1 layers fit" in said.out and "a x b: overlap" in said.out
    said = hosted("stack", "check", "a.safetensors", "a.safetensors", "--json", cwd=tmp_path)
    assert said.lines[-1]["result"]["verdict"] == "clash"
