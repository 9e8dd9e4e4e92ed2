"""The command line that asks for the same as a job did."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from studio.config import GenerateConfig, Settings, TrainConfig, build
from studio.jobs.folder import Manifest
from studio.jobs.spec import TOOLS, CaptionConfig, EvaluateConfig, ExportConfig

PROGRAM = "lora-studio"


def command_line(manifest: Manifest) -> str:
    """One line for a POSIX shell. A seed that was drawn is named, so that it gives the same again."""
    seed = {"seed": manifest.settings["seed"]} if "seed" in manifest.settings else {}
    kind, words = _VERBS[manifest.kind]
    return shlex.join([PROGRAM, *words(build(kind, {**manifest.config, **seed}), manifest)])


def flags(settings: Settings, leave_out: tuple[str, ...] = ()) -> Iterator[str]:
    """Every setting that is not as it comes, as its flag."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if name in leave_out or value == field.get_default(call_default_factory=True):
            continue
        flag = "--" + ("lora" if name == "loras" else name.replace("_", "-"))
        if isinstance(value, bool):
            yield flag if value else flag.replace("--", "--no-", 1)
            continue
        for item in value if isinstance(value, tuple) else (value,):
            text = f"{item:.10g}" if isinstance(item, float) else str(item)
            yield from [f"{flag}={text}"] if text.startswith("-") else [flag, text]


def _train(config: Any, _: Manifest) -> list[str]:
    return ["train", *flags(config)]


def _generate(config: Any, _: Manifest) -> list[str]:
    return ["generate", *flags(config), "--output", "pictures"]


def _evaluate(config: Any, manifest: Manifest) -> list[str]:
    return ["evaluate", manifest.name, *flags(config, ("run",))]


def _caption(config: Any, _: Manifest) -> list[str]:
    return ["images", "caption", config.images, *flags(config, ("images",))]


def _export(config: Any, manifest: Manifest) -> list[str]:
    thumbnail = [] if config.thumbnail else ["--no-thumbnail"]
    output = config.output or f"{manifest.name}.safetensors"
    return ["export", config.source, *flags(config, ("source", "output", "thumbnail")), *thumbnail, "--output", output]


def _stacked(verb: list[str]) -> Callable[[Any, Manifest], list[str]]:
    return lambda config, _: [*verb, *(str(row) for row in config.loras), *flags(config, ("loras",))]


def _sourced(verb: str) -> Callable[[Any, Manifest], list[str]]:
    return lambda config, _: [verb, config.source, *flags(config, ("source",))]


_VERBS: Mapping[str, tuple[type[Settings], Callable[[Any, Manifest], list[str]]]] = {
    "train": (TrainConfig, _train),
    "generate": (GenerateConfig, _generate),
    "evaluate": (EvaluateConfig, _evaluate),
    "caption": (CaptionConfig, _caption),
    "export": (ExportConfig, _export),
    "merge": (TOOLS["merge"], _stacked(["merge"])),
    "check": (TOOLS["check"], _stacked(["stack", "check"])),
    "resize": (TOOLS["resize"], _sourced("resize")),
    "probe": (TOOLS["probe"], _sourced("probe")),
    "extract": (TOOLS["extract"], lambda config, _: ["extract", config.tuned, *flags(config, ("tuned",))]),
    "bake": (TOOLS["bake"], lambda config, _: ["bake", *flags(config)]),
}
