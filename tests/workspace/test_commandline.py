"""A job as a command line: read back by the command line's own parser, it asks for the same."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from studio.cli.flags import settings_from
from studio.cli.parser import parse
from studio.config import GenerateConfig, Settings, TrainConfig, build
from studio.jobs.folder import Manifest
from studio.jobs.spec import TOOLS, CaptionConfig, EvaluateConfig, ExportConfig
from studio.jobs.worker import ALL_HANDLERS
from studio.workspace import Workspace
from studio.workspace.commandline import _VERBS, command_line

TRAIN = {"images": "my set", "name": "it", "learning_rate": 3e-05, "sample_prompts": ["a cat, 'quoted'", "-odd one"], "flip": True, "keep_best": False}
GENERATE = {
    "prompt": "it's a $cat\nin two lines",
    "loras": ["ink=0.5,text=0,output.1=0.25,curve=1@0/0@1", "wash=-0.5"],
    "grid": ["steps=2,3", "prompt:cat=cat|a, b"],
    "width": 64,
    "height": 128,
}


def manifest(kind: str, config: dict[str, Any], seed: int | None = None) -> Manifest:
    return Manifest(id="abc", kind=kind, name="run-1", config=config, settings={**config, **({} if seed is None else {"seed": seed})})


@pytest.mark.parametrize(("kind", "settings", "values"), [("train", TrainConfig, TRAIN), ("generate", GenerateConfig, GENERATE)])
def test_settings_come_back_as_they_were_with_the_seed_that_was_drawn(kind: str, settings: type[Settings], values: dict[str, Any]) -> None:
    config = build(settings, values)
    line = command_line(manifest(kind, config.model_dump(mode="json"), seed=77))
    words = shlex.split(line)
    assert words[:2] == ["lora-studio", kind]
    assert settings_from(settings, parse(words[1:])) == config.model_copy(update={"seed": 77})
    assert all(f"--{name}" not in words for name in ("precision", "batch-size")), "what is as it comes is not said"


@pytest.mark.parametrize(
    ("kind", "settings", "values", "expected"),
    [
        ("evaluate", EvaluateConfig, {"run": "abc", "images": "other"}, {"run_name": "run-1", "images": "other"}),
        ("caption", CaptionConfig, {"images": "cats", "model": "a/b", "replace": True}, {"name": "cats", "model": "a/b", "replace": True}),
        ("export", ExportConfig, {"source": "run@20", "thumbnail": False}, {"source": "run@20", "no_thumbnail": True, "output": "run-1.safetensors"}),
        ("merge", TOOLS["merge"], {"loras": ["a=0.5", "b"], "method": "svd", "rank": 8}, {"loras": ["a=0.5", "b=1"], "method": "svd", "rank": "8"}),
        ("check", TOOLS["check"], {"loras": ["a=0.5,text=0", "b"], "base": "demo-sdxl"}, {"loras": ["a=0.5,text=0", "b=1"], "base": "demo-sdxl"}),
        ("resize", TOOLS["resize"], {"source": "a", "energy": 0.5}, {"source": "a", "energy": "0.5"}),
        ("probe", TOOLS["probe"], {"source": "a", "tolerance": 0.5}, {"source": "a", "tolerance": "0.5"}),
        ("extract", TOOLS["extract"], {"tuned": "t", "base": "b", "text_encoders": False}, {"tuned": "t", "base": "b", "text_encoders": False}),
        ("bake", TOOLS["bake"], {"base": "b", "loras": ["a=0.5"], "output": "x"}, {"base": "b", "loras": ["a=0.5"], "output": "x"}),
    ],
)
def test_every_kind_of_job_has_a_line_that_its_verb_understands(kind: str, settings: type[Settings], values: dict[str, Any], expected: dict[str, Any]) -> None:
    arguments = vars(parse(shlex.split(command_line(manifest(kind, build(settings, values).model_dump(mode="json"))))[1:]))
    assert {name: arguments[name] for name in expected} == expected


def test_no_kind_of_job_is_without_a_line() -> None:
    assert set(_VERBS) == set(ALL_HANDLERS)


def test_a_job_of_the_queue_is_told_as_one_line(tmp_path: Path) -> None:
    with Workspace.open(tmp_path / "data") as studio:
        job = studio.jobs.generate(build(GenerateConfig, {"prompt": "a cat", "width": 64, "height": 64}))
        line = studio.command_line(job.id)
    assert line == f"lora-studio generate --prompt 'a cat' --seed {job.settings['seed']} --width 64 --height 64 --output pictures"
