"""Merge, resize, extract, bake and check in the worker: files read, the tool run, its result written and proven."""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.config import LoraWeight, build
from studio.events import Event, Exported, Finished, Loading, Warned
from studio.jobs import exporting
from studio.jobs.spec import AdapterOutput, BakeConfig, CheckConfig, ExtractConfig, MergeConfig, ResizeConfig

if TYPE_CHECKING:
    from studio.jobs.handlers import Work
    from studio.lora.adapter import Adapter
    from studio.lora.tools import Made


def merge(work: "Work") -> Iterator[Event]:
    """The weighted sum of adapters, as a file."""
    yield Loading(phase="reading the LoRAs")
    from studio.lora.tools import merge as tool

    config = build(MergeConfig, work.manifest.settings)
    made = yield from tool.merge(_rows(work, config.loras), _name(work, config), config.method, config.rank or 0)
    yield from _written(work, config, made)


def resize(work: "Work") -> Iterator[Event]:
    """An adapter with smaller ranks, as a file."""
    yield Loading(phase="reading the LoRA")
    from studio.lora.tools import resize as tool

    config = build(ResizeConfig, work.manifest.settings)
    adapter = exporting.adapter_of(Path(work.manifest.paths["source"]))
    made = yield from tool.resize(adapter, _name(work, config), config.rank or 0, config.energy or 0.0)
    yield from _written(work, config, made)


def extract(work: "Work") -> Iterator[Event]:
    """What a tuned model has more than its base, as a file."""
    yield Loading(phase="starting")
    from studio.families import sources
    from studio.lora.tools import extract as tool

    config = build(ExtractConfig, work.manifest.settings)
    work.warm.free()
    plan = tool.Plan(config.targets, config.rank or 0, config.energy or 0.0, config.text_encoders)
    tuned = sources.identify(Path(work.manifest.paths["tuned"]))
    made = yield from tool.extract(tuned, work.base, _name(work, config), plan, work.warm.device)
    yield from _written(work, config, made)


def bake(work: "Work") -> Iterator[Event]:
    """A base with adapters in it, as a checkpoint."""
    yield Loading(phase="reading the LoRAs")
    from studio.lora.tools import bake as tool

    config = build(BakeConfig, work.manifest.settings)
    report = yield from tool.bake(work.base, _rows(work, config.loras), Path(config.output), config.dtype)
    yield Exported(path=config.output, report=report)
    yield Finished(result={"path": config.output, "bytes": report["bytes"]})


def check(work: "Work") -> Iterator[Event]:
    """What the adapters of a stack do to each other, and how each fits the base."""
    yield Loading(phase="reading the LoRAs")
    from studio.jobs.comparing import compared

    config = build(CheckConfig, work.manifest.settings)
    yield Loading(phase="comparing the LoRAs")
    files = [Path(work.manifest.paths[f"lora:{i}"]) for i in range(len(config.loras))]
    yield Finished(result=compared(config, files, work.base if work.manifest.base else None))


def _rows(work: "Work", loras: tuple[LoraWeight, ...]) -> "list[tuple[str, Adapter, float]]":
    return [(Path(row.name).stem, exporting.adapter_of(Path(work.manifest.paths[f"lora:{i}"])), row.weight) for i, row in enumerate(loras)]


def _name(work: "Work", config: AdapterOutput) -> str:
    return config.name or (Path(config.output).stem if config.output else work.manifest.name)


def _written(work: "Work", config: AdapterOutput, made: "Made") -> Generator[Event, None, None]:
    """Write what a tool made, prove it, and only then say that it is there. A file that fails is not left behind."""
    for note in made.notes:
        yield Warned(message=note)
    yield Loading(phase="writing the LoRA file")
    target = Path(config.output) if config.output else work.folder.path / "output" / f"{_name(work, config)}.safetensors"
    proof = exporting.publish(made.adapter, target, config.format, config.dtype, made.adapter.metadata)
    shown = target.as_posix() if config.output else target.relative_to(work.folder.path).as_posix()
    yield Exported(path=shown, report={**proof, "tool": {"kind": work.manifest.kind, **made.report}})
    yield Finished(result={"path": shown, **_figures(made.report), "bytes": proof["bytes"]})


def _figures(report: dict[str, Any]) -> dict[str, Any]:
    """The few numbers of a report that a list of jobs can show."""
    layers = report["layers"]
    ranks = [row["rank"] for row in layers.values()]
    worst = max(layers, key=lambda path: layers[path]["residual"])
    told = {"layers": len(layers), "ranks": [min(ranks), max(ranks)], "residual": report["residual"]}
    return {**told, "worst_residual": layers[worst]["residual"], "worst_layer": worst}


def _timed(tool: "Callable[[Work], Iterator[Event]]") -> "Callable[[Work], Iterator[Event]]":
    """The tool, its end told with the seconds it took."""

    def run(work: "Work") -> Iterator[Event]:
        began = time.monotonic()
        with contextlib.closing(tool(work)) as events:  # type: ignore[type-var]
            for event in events:
                yield event.model_copy(update={"seconds": round(time.monotonic() - began, 3)}) if isinstance(event, Finished) else event

    return run


HANDLERS: "dict[str, Callable[[Work], Iterator[Event]]]" = {
    name: _timed(tool) for name, tool in (("merge", merge), ("resize", resize), ("extract", extract), ("bake", bake), ("check", check))
}
