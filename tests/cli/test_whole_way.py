"""From a folder of pictures to a file for others and a picture drawn with it, in a script's words."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import ROOT, CommandLine, hosting
from tests.forked import Forks

SMALL = ["--steps", "2", "--batch-size", "1", "--rank", "4", "--resolution", "64", "--seed", "7"]


@pytest.fixture(scope="module", params=["demo-sdxl", "demo-flux"])
def base(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def trained(base: str, pictures: Path, tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Iterator[tuple[CommandLine, Path]]:
    """Commands on a data folder with a run of two steps, and the file it wrote: by a process that begins from nothing and has no studio beside it."""
    folder = tmp_path_factory.mktemp("whole-way")
    alone, output = CommandLine(folder / "data"), folder / "sun.safetensors"
    said = alone("train", "--base", base, "--images", pictures, "--name", "sun", "--output", output, "--trigger", "sunny", *SMALL, "--json")
    assert said.code == 0, said.err
    lines = said.lines
    assert lines[0]["kind"] == "submitted" and lines[-1]["kind"] == "finished"
    assert [line["step"] for line in lines if line["kind"] == "step"] == [1, 2]
    assert [line["path"] for line in lines if line["kind"] == "exported"] == [str(output)]
    assert next(line for line in lines if line["kind"] == "started")["settings"]["seed"] == 7
    with hosting(alone.data, forks):
        yield CommandLine(alone.data, forks), output


def test_the_file_says_what_it_is(base: str, trained: tuple[CommandLine, Path]) -> None:
    studio, output = trained
    (found,) = studio("inspect", output, "--json").lines
    assert (found["family"], found["metadata"]["ss_network_dim"]) == (base.removeprefix("demo-"), "4")
    assert len(found["sha256"]) == 64


def test_the_library_and_the_queue_know_the_run(base: str, trained: tuple[CommandLine, Path]) -> None:
    studio, _ = trained
    (adapter,) = studio("library", "list", "sun", "--json").lines
    assert (adapter["name"], adapter["trigger"], adapter["base"]) == ("sun", "sunny", base)
    jobs = studio("jobs", "list", "--json").lines
    assert ("train", "finished") in {(job["kind"], job["state"]) for job in jobs}


def test_it_draws_with_the_lora_into_a_folder(base: str, trained: tuple[CommandLine, Path], tmp_path: Path) -> None:
    studio, _ = trained
    arguments = ["--base", base, "--prompt", "sunny a tree", "--lora", "sun=0.8", "--size", "64x64", "--steps", "2", "--seed", "3"]
    for expected in (["first"], ["first", "second"]):  # the second run must not write over the first
        said = studio("generate", *arguments, "--output", tmp_path / "drawn", "--json")
        assert said.code == 0, said.err
        images = [line for line in said.lines if line["kind"] == "image"]
        assert len(images) == 1 and images[0]["seed"] == 3
        with Image.open(images[0]["path"]) as picture:
            assert picture.size == (64, 64)
            assert "sun" in picture.text["parameters"]  # type: ignore[attr-defined]
        assert len(list((tmp_path / "drawn").iterdir())) == len(expected)


def test_it_exports_for_diffusers(trained: tuple[CommandLine, Path], tmp_path: Path) -> None:
    studio, _ = trained
    output = tmp_path / "sun-peft.safetensors"
    said = studio("export", "sun", "--output", output, "--format", "peft", "--dtype", "fp32", "--json")
    assert said.code == 0, said.err
    assert said.lines[-1]["kind"] == "finished"
    (found,) = studio("inspect", output, "--json").lines
    assert found["dtypes"] == ["F32"] and found["rank"] == 4
    again = studio("export", "sun", "--output", output, "--json")
    assert again.code == 0, "the export is a job of the same name; the run must still be found"


def test_a_lora_for_another_base_is_refused(base: str, trained: tuple[CommandLine, Path], tmp_path: Path) -> None:
    studio, output = trained
    other = {"demo-sdxl": "demo-flux", "demo-flux": "demo-sdxl"}[base]
    said = studio("generate", "--base", other, "--prompt", "x", "--lora", output, "--output", tmp_path / "drawn")
    assert said.code == 2
    assert "is a LoRA for" in said.err and len(said.err.strip().splitlines()) == 1


def test_a_finished_run_can_be_trained_further(trained: tuple[CommandLine, Path]) -> None:
    studio, _ = trained
    said = studio("train", "--resume", "sun", "--steps", "1", "--json")
    assert said.code == 0, said.err
    assert [line["step"] for line in said.lines if line["kind"] == "step"] == [3]


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent otherwise there")
def test_ctrl_c_cancels_the_run_and_leaves_with_130(pictures: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "studio", "train", "--images", str(pictures), *SMALL, "--steps", "5000", "--json"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "STUDIO_DATA": str(tmp_path / "data")}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        kinds = []
        for line in process.stdout:
            kinds.append(json.loads(line)["kind"])
            if kinds.count("step") == 1 and kinds[-1] == "step":
                process.send_signal(signal.SIGINT)
        code = process.wait(timeout=60)
    assert code == 130
    assert kinds[-1] == "cancelled" and kinds.count("step") < 5000
