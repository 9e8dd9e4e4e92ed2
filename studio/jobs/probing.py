"""The rank probe in the worker: at the end of a run that asks for it, or as a job of its own on any LoRA. What it writes is proven as every file."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.config import TrainConfig, build
from studio.events import Event, Exported, Finished, Loading, Started
from studio.jobs import exporting
from studio.jobs.folder import JobFolder
from studio.jobs.spec import Dtype, Format, ProbeConfig

if TYPE_CHECKING:
    from studio.evaluation.probe import Probed, Subject
    from studio.jobs.handlers import Work

SUFFIX = "-trimmed"


def probe(work: "Work") -> Iterator[Event]:
    """A smaller LoRA that predicts held-out pictures as well, as a file."""
    began = time.monotonic()
    yield Loading(phase="starting")
    from studio.evaluation import probe as engine

    config = build(ProbeConfig, work.manifest.settings)
    work.warm.free()
    subject, words = _subject(work)
    found = yield from _searched(work, subject, config.tolerance)
    if found.adapter is None:
        yield Finished(seconds=round(time.monotonic() - began, 3), result={"path": "", "probe": found.report})
        return
    target = Path(config.output) if config.output else work.folder.path / "output" / f"{work.manifest.name}.safetensors"
    written = _written(found, target, config.format, config.dtype, words)
    shown = target.as_posix() if config.output else target.relative_to(work.folder.path).as_posix()
    yield Exported(path=shown, report=written)
    n = target.stat().st_size
    result = {"path": shown, "bytes": n, "probe": engine.with_bytes(found.report, n)}
    yield Finished(seconds=round(time.monotonic() - began, 3), result=result)


def at_the_end(work: "Work", config: TrainConfig, given: Path, whole: Path) -> Generator[Event, None, dict[str, Any]]:
    """The smaller LoRA of a run that has just ended, beside its file `whole`; the report for its result. given: the checkpoint that it gives."""
    from studio.data.images import read_set
    from studio.evaluation import probe as engine
    from studio.training import checkpoint

    state = checkpoint.state(given)
    images = read_set(Path(work.manifest.paths["images"]))
    subject = engine.Subject(checkpoint.adapter(given), build(TrainConfig, state.settings), work.base, images, state.images)
    found = yield from _searched(work, subject, engine.TOLERANCE)
    report = {**found.report, "bytes_before": whole.stat().st_size}
    if found.adapter is None:
        return report
    words = exporting.metadata(work.folder, work.manifest, work.base, state.step)
    target = whole.with_name(f"{whole.stem}{SUFFIX}.safetensors")
    written = _written(found, target, "kohya", "fp16", words)
    yield Exported(
        path=target.relative_to(work.folder.path).as_posix(), report={**written, "checkpoint": {"step": state.step, "best": checkpoint.check(given).best}}
    )
    return engine.with_bytes(report, target.stat().st_size)


def _searched(work: "Work", subject: "Subject", tolerance: float) -> "Generator[Event, None, Probed]":
    """The engine's search; within a job that has started already it does not start again."""
    import torch

    from studio.evaluation import probe as engine

    folder, cache = work.folder.path / "probe", work.layout.cache / "encoded"
    device = torch.device(work.warm.device)
    search = engine.probe(subject, folder, cache, tolerance=tolerance, requests=work.requests, device=device)
    while True:
        try:
            event = next(search)
        except StopIteration as end:
            return end.value
        if not (isinstance(event, Started) and work.manifest.kind == "train"):
            yield event


def _subject(work: "Work") -> "tuple[Subject, dict[str, str]]":
    """What is measured by what, and the words of the new file."""
    from studio.data.images import read_set
    from studio.evaluation.probe import Subject
    from studio.lora.tools import origin
    from studio.training import checkpoint

    paths = work.manifest.paths
    source = Path(paths["source"])
    adapter = exporting.adapter_of(source)
    others = read_set(Path(paths["others"])) if "others" in paths else None
    if not paths.get("run"):
        assert others is not None
        config = build(TrainConfig, {"images": others.name, "base": work.base.name, "seed": 0})
        words = origin.of_adapter(adapter.family, work.manifest.name, [(source.stem, adapter.metadata)], origin.title(adapter.metadata, source.stem), 0)
        return Subject(replace(adapter, embeddings={}), config, work.base, others, "", others), words
    run = JobFolder.of(work.layout.jobs, paths["run"])
    state = checkpoint.state(source.parent)
    subject = Subject(adapter, build(TrainConfig, state.settings), work.base, read_set(Path(paths["images"])), state.images, others)
    return subject, exporting.metadata(run, run.manifest(), work.base, int(paths["step"]))


def _written(found: "Probed", target: Path, format: Format, dtype: Dtype, words: Mapping[str, str]) -> dict[str, Any]:
    """Write and prove the smaller LoRA, which tells where it comes from; the report of the proof."""
    from studio.evaluation import probe as engine

    assert found.adapter is not None
    told = {"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic", "modelspec.title": target.stem}
    about = f"{words.get('modelspec.description', '')} {engine.sentence(found.report)}".strip()
    report = exporting.publish(found.adapter, target, format, dtype, {**words, **told, "modelspec.description": about})
    return {**report, "probe": found.report}


HANDLERS: "dict[str, Callable[[Work], Iterator[Event]]]" = {"probe": probe}
