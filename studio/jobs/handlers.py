"""What each kind of job does, in the worker: engines composed, their events passed on."""

import dataclasses
import gc
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.config import GenerateConfig, TrainConfig, build
from studio.events import Checkpoint, Event, Exported, Finished, Loading, Sample, Started
from studio.families.base import Base
from studio.jobs import exporting, passes, ranks, trackers
from studio.jobs.folder import FolderRequests, JobFolder, Manifest
from studio.jobs.sets import read_sets
from studio.jobs.spec import ExportConfig
from studio.killpoints import reached
from studio.library.layout import Layout

if TYPE_CHECKING:
    from studio.data.images import ImageSet
    from studio.families.base import Components
    from studio.lora.adapter import Adapter

ADAPTERS = 8  # of generate jobs, kept in main memory
PREVIEW_PROMPTS = 3  # captions taken as preview prompts when none are given


class Warm:
    """The last base model of a generate job, kept on the device until something else needs the room."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.name = ""
        self._key = ""
        self._components: Components | None = None
        self._adapters: OrderedDict[tuple[Path, int, int], Adapter] = OrderedDict()

    def components(self, base: Base, precision: str, load: Callable[[], "Components"]) -> "Components":
        """The loaded base; `load` is called if another one, or none, is there."""
        key = f"{base_values(base)} {precision}"
        if self._components is None or key != self._key:
            self.free()
            with uncollected():
                self._components = load()
            gc.freeze()  # half a million objects that stay: to look through them takes the collector 0.3 s, in the middle of a change of the stack
            self._key, self.name = key, base.name
        return self._components

    def adapters(self, paths: Sequence[Path]) -> "list[Adapter]":
        """The adapters of files or checkpoints; the last ones are kept as long as their files stay as they are. New ones are read all at once."""
        keys = [(path, found.st_mtime_ns, found.st_size) for path in paths for found in [path.stat()]]
        fresh = [key for key in dict.fromkeys(keys) if key not in self._adapters]
        with ThreadPoolExecutor(max(1, len(fresh))) as readers:
            self._adapters |= zip(fresh, readers.map(lambda key: exporting.adapter_of(key[0], stored=True), fresh), strict=True)
        wanted = [self._adapters[key] for key in keys]
        for key in keys:
            self._adapters.move_to_end(key)
        while len(self._adapters) > ADAPTERS:
            self._adapters.popitem(last=False)
        return wanted

    def free(self) -> None:
        """Give the device's memory back."""
        self._components, self._key, self.name = None, "", ""
        self._adapters.clear()
        gc.unfreeze()
        gc.collect()
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Work:
    """A job and what it may use."""

    folder: JobFolder
    manifest: Manifest
    layout: Layout
    requests: FolderRequests
    warm: Warm
    devices: tuple[str, ...] = ()  # set aside for it, the warm one first; none where it runs by itself

    @property
    def base(self) -> Base:
        return base_from(self.manifest.base)


@contextmanager
def uncollected() -> Iterator[None]:
    """Imports without the collector: what they make stays, and to look through it again and again is a fifth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def base_values(base: Base) -> dict[str, Any]:
    """A base as JSON values."""
    values = dataclasses.asdict(dataclasses.replace(base, habits=dict(base.habits)))
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def base_from(values: Mapping[str, Any]) -> Base:
    """The base that `base_values` wrote down."""
    paths = {key: Path(values[key]) for key in ("path", "vae", "encoders") if values[key]}
    return Base(**{**values, **paths})


def train(work: Work) -> Iterator[Event]:
    """Train, then write the adapter for others and read it back; only then is the run finished."""
    from studio.training import checkpoint

    yield Loading(phase="starting")
    work.warm.free()
    config = build(TrainConfig, work.manifest.settings)
    trackers.check(config.trackers)
    steps = ranks.trained(work, config.processes) if config.processes > 1 else stepping(work)
    finished: Finished | None = None
    for event in trackers.tracked(steps, config, work.folder.path):
        if isinstance(event, Finished):
            finished = event
            break
        if isinstance(event, Started):
            images = read_sets(config, work.manifest.paths)
            exporting.remember(work.folder, event, images.title or images.name, _captions(config, images))
        yield event
    if finished is None:
        return
    given = work.folder.path / finished.result["checkpoint"]
    yield Loading(phase="writing the LoRA file" + (f" of {given.name}, the best" if checkpoint.check(given).best else ""))
    reached("export")
    said = _exported_before(work)
    exported = next((one for one in said if "probe" not in one.report), None)
    if exported is None:
        exported = _export_run(work, config, given)
        reached("exported")
        yield exported
    result = {**finished.result, "path": exported.path}
    if config.rank_probe and not any("probe" in one.report for one in said):
        from studio.jobs import probing

        result["probe"] = yield from probing.at_the_end(work, config, given, work.folder.path / exported.path)
    yield Finished(step=finished.step, seconds=finished.seconds, result=result)


def stepping(work: Work) -> Iterator[Event]:
    """The training itself, in this process."""
    with uncollected():
        from studio.training.loop import train as run

    gc.freeze()  # what was imported stays: freeing the encoders and the end of the run need not look through it
    config = build(TrainConfig, work.manifest.settings)
    images = read_sets(config, work.manifest.paths)
    preview = _preview(config, _captions(config, images))
    cache = work.layout.cache / "encoded"
    return run(config, work.base, images, work.folder.path, cache, requests=work.requests, preview=preview, device=work.warm.device)


def _captions(config: TrainConfig, images: "ImageSet") -> list[str]:
    from studio.training.words import with_trigger, without_separator

    trigger, sign = config.trigger or images.trigger, config.keep_separator
    return [without_separator(with_trigger(picture.caption, trigger), sign) for picture in images.pictures]


def _preview(config: TrainConfig, captions: Sequence[str]) -> "Callable[[Components, int, Path], Iterable[Sample]] | None":
    """The preview that training calls: the Generate page's sampler with the run's own prompts and seed."""
    prompts = list(config.sample_prompts) or [caption for caption in captions if caption][:PREVIEW_PROMPTS] or [""]

    def draw(c: "Components", step: int, folder: Path) -> Iterable[Sample]:
        from studio.generation.sampler import preview

        return preview(c, prompts, step, folder, max(config.seed, 0))

    return draw


def _exported_before(work: Work) -> list[Exported]:
    """The exports of the last checkpoint if the worker died right after them: told twice they would join the library twice."""
    said = [event for event in work.folder.read()[0] if isinstance(event, Checkpoint | Exported)]
    found = list(takewhile(lambda event: isinstance(event, Exported), reversed(said)))
    return [event for event in found if isinstance(event, Exported) and (work.folder.path / event.path).is_file()]


def _export_run(work: Work, config: TrainConfig, path: Path) -> Exported:
    """The checkpoint that a run gives as a proven file for others, and a copy of it where the settings name a place."""
    from studio.training import checkpoint

    given = checkpoint.check(path)
    adapter = exporting.adapter_of(given.adapter)
    words = exporting.metadata(work.folder, work.manifest, work.base, given.step) | _picture(exporting.sample_of(work.folder, given.step))
    target = work.folder.path / "output" / f"{config.name}.safetensors"
    report = exporting.publish(adapter, target, "kohya", "fp16", words)
    if config.output:
        exporting.publish(adapter, Path(config.output), "kohya", "fp16", words)
    told = {"step": given.step, "best": given.best}
    return Exported(path=target.relative_to(work.folder.path).as_posix(), report={**report, "checkpoint": told})


def _picture(sample: Path | None) -> dict[str, str]:
    """The thumbnail for the header, if there is a picture."""
    return exporting.thumbnail(sample) if sample else {}


def generate(work: Work) -> Iterator[Event]:
    """Draw pictures with a stack of adapters; the base stays loaded for the next job."""
    yield Loading(phase="starting")
    with uncollected():
        from studio.generation import grids, sampler

    config = build(GenerateConfig, work.manifest.settings)
    base = work.base
    c = work.warm.components(base, config.precision, lambda: sampler.open_base(base, config.precision, work.warm.device))
    if config.grid:
        given = {key.removeprefix("lora:"): Path(path) for key, path in work.manifest.paths.items() if key.startswith("lora:")}
        adapters = dict(zip(given, work.warm.adapters(list(given.values())), strict=True))
        yield from grids.generate(c, adapters, config, work.folder.path, requests=work.requests, files=passes.files(work), versions=passes.versions(work))
        return
    wanted = passes.order(work)
    yield from sampler.generate(
        c, wanted.stack, config, wanted.folder, requests=wanted.requests, names=wanted.names, files=wanted.files, versions=wanted.versions
    )


def export(work: Work) -> Iterator[Event]:
    """Rewrite an adapter in a format for others, proven."""
    run, step = work.manifest.paths.get("run"), work.manifest.paths.get("step")
    yield Loading(phase=f"writing the LoRA file of step {step}" if run else "writing the LoRA file")
    from studio.lora.header import THUMBNAIL

    config = build(ExportConfig, work.manifest.settings)
    source = Path(work.manifest.paths["source"])
    target = Path(config.output) if config.output else work.folder.path / "output" / f"{work.manifest.name}.safetensors"
    adapter = exporting.adapter_of(source)
    words, picture = _told(work, config, source, adapter.metadata)
    if not config.thumbnail:
        words.pop(THUMBNAIL, None)
    elif picture:
        words |= exporting.thumbnail(picture)
    report = exporting.publish(adapter, target, config.format, config.dtype, words)
    from studio.training import checkpoint

    if checkpoint.is_checkpoint(source.parent):
        given = checkpoint.check(source.parent)
        report = {**report, "checkpoint": {"step": given.step, "best": given.best}}
    beside = exporting.side_files(target, picture) if config.side_files else []
    beside += exporting.words_apart(adapter, target, config.dtype, words) if config.side_files else report["words"]
    shown = target.as_posix() if config.output else target.relative_to(work.folder.path).as_posix()
    yield Exported(path=shown, report={**report, "side_files": beside})
    yield Finished(result={"path": shown})


def _told(work: Work, config: ExportConfig, source: Path, own: Mapping[str, str]) -> tuple[dict[str, str], Path | None]:
    """What the run behind an export says of itself, and a picture of it; files from elsewhere keep their own words."""
    if not work.manifest.paths.get("run"):
        return dict(own), next(source.parent.glob("preview.*"), None)
    run = JobFolder.of(work.layout.jobs, work.manifest.paths["run"])
    manifest, step = run.manifest(), int(work.manifest.paths["step"])
    return exporting.metadata(run, manifest, base_from(manifest.base), step, config.tags), exporting.sample_of(run, step)


HANDLERS: dict[str, Callable[[Work], Iterator[Event]]] = {"train": train, "generate": generate, "export": export}
