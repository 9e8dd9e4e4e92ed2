"""From what a person asks for to a job that can be run elsewhere: names become files, defaults are filled in, and whatever
can be known to fail is refused here, before a job exists.
"""

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio import families
from studio.config import GenerateConfig, Settings, TrainConfig, build, resolve, safe_stem
from studio.config.training.objective import check_objective
from studio.config.training.optimization import HABITS, check_installed
from studio.errors import InputError, NotFound, SettingsError
from studio.families.base import Base
from studio.generation import grids, prompt, wildcards
from studio.jobs import trackers
from studio.jobs.folder import Manifest
from studio.jobs.handlers import base_values
from studio.jobs.sets import beside
from studio.jobs.spec import CaptionConfig, EvaluateConfig
from studio.library import adapters
from studio.library.ids import new_id
from studio.library.layout import check_writable
from studio.workspace.bases import Bases
from studio.workspace.inputs import Inputs
from studio.workspace.library import Library, fits
from studio.workspace.records import InputRecord
from studio.workspace.sets import Sets

SEEDS = 2**32
_HUB_ID = re.compile(r"[\w.\-]+/[\w.\-]+")


@dataclass(frozen=True)
class Source:
    """What an export reads: a file, what to call it, and the run and step, or the library entry, that it comes from."""

    path: Path
    name: str
    run: str = ""
    step: int = 0
    adapter: str = ""

    @property
    def uses(self) -> list[str]:
        return [f"{kind}:{id}" for kind, id in (("adapter", self.adapter), ("job", self.run)) if id]


def defaults(base: Base, act: str, drop: tuple[str, ...] = ()) -> list[Mapping[str, Any]]:
    """Where unset settings of `act` ("train", "generate") come from: the base's habits, then its family."""
    sources = (base.habits.get(act, {}), families.get(base.family).facts.defaults.get(act, {}))
    return [{key: value for key, value in source.items() if key not in drop} for source in sources]


def resolved_train(config: TrainConfig, base: Base) -> TrainConfig:
    """The settings a run will use; steps stay open where epochs are named, for they follow from the pictures."""
    config = resolve(config, HABITS.get(config.optimizer, {}), *defaults(base, "train", drop=("steps",) if config.epochs else ()))
    return resolve(config, {"alpha": float(config.rank)} if config.rank else {})


def resolved_generate(config: GenerateConfig, base: Base) -> GenerateConfig:
    return resolve(config, *defaults(base, "generate"))


def train(config: TrainConfig, sets: Sets, bases: Bases, find: Callable[[str], Source]) -> Manifest:
    """A training run, checked. `find` tells what a name in `start_from` stands for."""
    base = bases.resolve(config)
    images = sets.resolve(config.images)
    settings = resolved_train(config, base)
    if settings.batch_size and settings.processes > settings.batch_size:
        raise SettingsError(f"processes {settings.processes} is more than batch_size {settings.batch_size}: some would have nothing to do; lower it")
    trackers.check(settings.trackers)
    check_installed(settings.optimizer)
    paths = {"images": str(images.folder)}
    uses = [f"set:{images.id}"] if images.id else []
    check_objective(base.habits.get("objective", families.get(base.family).facts.objective), settings)
    for key, name in beside(config).items():
        other = sets.resolve(name)
        paths[key] = str(other.folder)
        uses += [f"set:{other.id}"] if other.id else []
    changes: dict[str, Any] = {"seed": _seed(config), "trigger": config.trigger or images.trigger}
    if config.start_from:
        source = find(config.start_from)
        fits(source.path, adapters.describe(source.path)["family"], base.family)
        changes["start_from"] = paths["start_from"] = str(source.path)
        uses += source.uses
    if config.output:
        changes["output"] = str(writable(Path(config.output)))
    return _manifest("train", config.name, config, build(TrainConfig, {**settings.model_dump(), **changes}), base, paths=paths, uses=uses)


def generate(config: GenerateConfig, bases: Bases, library: Library, inputs: Inputs, run: Callable[[str], Source]) -> Manifest:
    """A generate job, checked. LoRAs named in the prompt join the stack. `run` tells what a run, RUN@STEP or RUN@live stands for."""
    base = bases.resolve(config)
    for words in (config.prompt, config.negative_prompt):
        wildcards.resolve(words, 0, inputs.wildcards)
    spoken = prompt.parse(config.prompt)
    stack = prompt.merge(config.loras, spoken.loras)
    free = {row.name for row in config.loras}  # only these may be files: a prompt is often pasted from elsewhere
    starts = {name: inputs.use(ref) for name in ("init_image", "mask") if (ref := getattr(config, name))}
    config = config.model_copy(update={name: record.name for name, record in starts.items()})
    settings = resolved_generate(_shaped(config, base, starts.get("init_image")), base)
    multiple = families.get(base.family).facts.size_multiple
    for side in (settings.width or 0, settings.height or 0):
        if side % multiple:
            raise InputError(f"size {settings.width}x{settings.height}: {base.name} draws multiples of {multiple} pixels; try {side // multiple * multiple}")
    changes = {"seed": _seed(config), "loras": [row.model_dump() for row in stack], "prompt": spoken.text}
    settings = build(GenerateConfig, {**settings.model_dump(), **changes})
    refs = dict.fromkeys(row.name for cell in grids.cells(settings) for row in cell.config.loras)
    tagged = {row.name for row in stack} - free
    found = {ref: _stacked(ref, base, library, run, files=ref not in tagged) for ref in dict.fromkeys([*(row.name for row in stack), *refs])}
    rows = tuple(row.model_copy(update={"name": found[row.name][0]}) for row in stack)
    settings = settings.model_copy(update={"loras": rows})
    paths = {f"lora:{name}": str(source.path) for ref, (called, source) in found.items() for name in (ref, called)}
    paths |= {name: str(inputs.path(record.name)) for name, record in starts.items()}
    uses = [use for _, source in found.values() for use in source.uses]
    name = " ".join(spoken.text.split())[:80] or "picture"
    return _manifest("generate", name, config, settings, base, paths=paths, uses=uses)


def _shaped(config: GenerateConfig, base: Base, start: InputRecord | None) -> GenerateConfig:
    """With the shape of the picture that is drawn from, no larger than what the base draws best, unless a size is named."""
    if start is None or config.width or config.height:
        return config
    own = resolved_generate(config, base)
    facts = families.get(base.family).facts
    scale = min(1.0, ((own.width or start.width) * (own.height or start.height) / (start.width * start.height)) ** 0.5)
    width, height = (max(64, round(side * scale / facts.size_multiple) * facts.size_multiple) for side in (start.width, start.height))
    return config.model_copy(update={"width": width, "height": height})


def _stacked(ref: str, base: Base, library: Library, run: Callable[[str], Source], *, files: bool) -> tuple[str, Source]:
    """A row's file that fits the base, and what the row is called: a run by its step, so that the picture can be drawn again."""
    try:
        path, id = library.resolve(ref, base.family, files)
        return ref, Source(path, path.stem, adapter=id)
    except NotFound:
        source = run(ref)
        if not source.run:
            raise
    fits(source.path, adapters.describe(source.path)["family"], base.family)
    return f"{ref.rpartition('@')[0] or ref}@{source.step}", source


def export(config: Settings, source: Source) -> Manifest:
    """A rewrite of an adapter file, checked."""
    adapters.describe(source.path)
    values = config.model_dump()
    if values["output"]:
        values["output"] = str(writable(Path(values["output"])))
    if values["output"] and Path(values["output"]).resolve() == source.path.resolve():
        raise InputError(f"output {values['output']} is the file that is read; name another one")
    paths = {"source": str(source.path), "run": source.run, "step": str(source.step)}
    return Manifest(id=new_id(), kind="export", name=safe_stem(source.name), config=config.model_dump(), settings=values, paths=paths, uses=source.uses)


def evaluate(config: EvaluateConfig, run: Manifest, sets: Sets) -> Manifest:
    """A measurement of a run's checkpoints, checked."""
    trained = build(TrainConfig, run.settings)
    if not config.images and not trained.validation_fraction:
        raise InputError(f"run {run.name!r} trained on all its pictures; name an image set that it has not seen, with --images")
    paths, uses = {"run": run.id, "images": run.paths["images"]}, [f"job:{run.id}", *(use for use in run.uses if use.startswith("set:"))]
    if config.images:
        images = sets.resolve(config.images)
        paths["others"] = str(images.folder)
        uses += [f"set:{images.id}"] if images.id else []
    values = config.model_dump()
    return Manifest(id=new_id(), kind="evaluate", name=run.name, config=values, settings=values, base=run.base, paths=paths, uses=uses)


def caption(config: CaptionConfig, sets: Sets) -> Manifest:
    """Captions for an image set, checked as far as it can be without loading the model."""
    images = sets.resolve(config.images)
    if not images.id:
        raise InputError(f"{config.images!r} is no set of your own, so captions cannot be written beside its pictures; import it first")
    model = Path(config.model).expanduser()
    if model.is_dir() and not (model / "config.json").is_file():
        raise InputError(f"caption model {model}: there is no config.json in that folder; name a model that transformers can load, or a hub id")
    if not model.is_dir() and not _HUB_ID.fullmatch(config.model):
        raise InputError(f"caption model {config.model!r} is neither a folder nor a hub id like OWNER/NAME")
    values = config.model_dump() | {"model": str(model.absolute()) if model.is_dir() else config.model}
    paths, name = {"images": str(images.folder), "set": images.id}, sets.show(images.id).name
    return Manifest(id=new_id(), kind="caption", name=name, config=config.model_dump(), settings=values, paths=paths, uses=[f"set:{images.id}"])


def writable(path: Path) -> Path:
    """The absolute path of a .safetensors file that can be written. Raises InputError now rather than after the work."""
    path = path.expanduser().absolute()
    if path.suffix != ".safetensors":
        raise InputError(f"output {path}: the file's name must end in .safetensors")
    if path.is_dir():
        raise InputError(f"output {path} is a folder; name a file in it")
    folder = next(parent for parent in path.parents if parent.exists())
    try:
        check_writable(folder)
    except OSError as error:
        raise InputError(f"output {path} cannot be written ({error.strerror}); choose another place") from None
    return path


def _seed(config: TrainConfig | GenerateConfig) -> int:
    return config.seed if config.seed >= 0 else secrets.randbelow(SEEDS)


def _manifest(kind: str, name: str, config: Settings, settings: Settings, base: Base, *, paths: dict[str, str], uses: list[str]) -> Manifest:
    return Manifest(
        id=new_id(),
        kind=kind,
        name=name,
        config=config.model_dump(mode="json"),
        settings=settings.model_dump(mode="json"),
        base=base_values(base),
        paths=paths,
        uses=uses,
    )
