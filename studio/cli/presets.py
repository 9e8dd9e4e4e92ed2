"""presets: words and settings for drawing, kept under names."""

import argparse

from studio.cli.opening import opened
from studio.cli.output import emit, tell
from studio.config import GenerateConfig, build
from studio.config.generating.presets import Preset


def list_presets(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        for preset in workspace.presets.list():
            if arguments.json:
                emit(preset)
            else:
                print(f"{preset.name}: {_words(preset)}")
    return 0


def save(arguments: argparse.Namespace) -> int:
    given = {name: value for name, value in vars(arguments).items() if name in GenerateConfig.model_fields}
    words = {name: given.pop(name) for name in ("prompt", "negative_prompt") if name in given}
    known = build(GenerateConfig, given).model_dump(mode="json")
    preset = build(Preset, {"name": arguments.name, **words, "settings": {name: known[name] for name in given}})
    with opened(arguments) as workspace:
        workspace.presets.save(preset)
    if arguments.json:
        emit(preset)
    else:
        tell(f"kept {preset.name}: {_words(preset)}")
    return 0


def remove(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        preset = workspace.presets.remove(arguments.name)
    if arguments.json:
        emit(preset)
    else:
        tell(f"removed {preset.name}")
    return 0


def _words(preset: Preset) -> str:
    parts = [preset.prompt, f"not {preset.negative_prompt}" if preset.negative_prompt else ""]
    parts += [f"{name} {value}" for name, value in preset.settings.items()]
    return ", ".join(part for part in parts if part)
