"""train, generate, export: submit a job and watch it."""

import argparse
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.cli.fitting import fit
from studio.cli.flags import locate, settings_from
from studio.cli.follow import follow
from studio.cli.judging import verdict
from studio.cli.opening import knows, opened
from studio.cli.output import emit, tell, verdicts
from studio.cli.recipes import beneath
from studio.config import BaseChoice, GenerateConfig, TrainConfig, build
from studio.config.recipes import find, fits
from studio.config.training.showing import repeats_of
from studio.errors import BaseError, Cancelled, InputError, SettingsError
from studio.events import Event, Exported, Image, Sample, Sheet

if TYPE_CHECKING:
    from studio.workspace import Workspace


def train(arguments: argparse.Namespace) -> int:
    if arguments.resume:
        return _resume(arguments)
    config = settings_from(TrainConfig, arguments, beneath(arguments.recipe, vars(arguments)))
    with opened(arguments) as workspace:
        if arguments.recipe:
            base = workspace.bases.resolve(config)
            fits(find(arguments.recipe), base.family, base.name)
        changes = _base_paths(workspace, config) | _sets(workspace, config)
        if config.output:
            changes["output"] = _absolute(config.output)
        if config.start_from:
            changes["start_from"] = locate(config.start_from, lambda name: knows(workspace.library.find, name))
        if arguments.plan:
            return fit(workspace, config.model_copy(update=changes), arguments.json)
        if arguments.sweep:
            return _sweep(workspace, build(TrainConfig, {name: getattr(config, name) for name in config.model_fields_set} | changes), arguments)
        job = workspace.jobs.train(config.model_copy(update=changes))
        code = _watch(workspace, job.id, arguments.json, seen=_locator(workspace, job.id, changes.get("output")))
        if code == 0 and not arguments.json:
            tell(f"draw with it: lora-studio generate --base {config.base} --lora {config.name} --prompt TEXT --output DIR")
        return code


def _sweep(workspace: "Workspace", config: TrainConfig, arguments: argparse.Namespace) -> int:
    """Several runs, watched one after the other; where they ended, side by side. The first that does not end well decides the exit code."""
    jobs = workspace.sweeps.submit(config, arguments.sweep)
    code = 0
    for job in jobs:
        if not arguments.json:
            tell(f"run {job.name}")
        ended = _watch(workspace, job.id, arguments.json, seen=_locator(workspace, job.id))
        code = code or ended
        if ended == Cancelled.exit_code:
            for rest in jobs[jobs.index(job) + 1 :]:
                workspace.jobs.cancel(rest.id)
            break
    sheet = workspace.sweeps.sheet(config.name, [job.id for job in jobs])
    if arguments.json:
        emit({"kind": "sweep", "jobs": [job.id for job in jobs], "sheet": str(sheet) if sheet else None})
    else:
        tell(f"side by side: {sheet}" if sheet else "no run drew samples, so there is no sheet of them; name --sample-every for one")
    return code


def _sets(workspace: "Workspace", config: TrainConfig) -> dict[str, object]:
    """All image sets of a run, absolute where they are folders."""

    def found(name: str) -> str:
        return locate(name, lambda name: knows(workspace.sets.show, name))

    several = {key: tuple(f"{found(name)}={n}" for name, n in repeats_of(getattr(config, key)).items()) for key in ("more_images", "regularization_images")}
    return {"images": found(config.images), **{key: names for key, names in several.items() if names}}


def _resume(arguments: argparse.Namespace) -> int:
    given = {name for name in TrainConfig.model_fields if name in vars(arguments)} | ({"config"} if arguments.config else set())
    if arguments.fork:
        return _fork(arguments)
    others = ", ".join(sorted(given - {"steps"}))
    if others:
        raise SettingsError(f"--resume goes on with the settings of the run; leave out {others}, or start a new run from its weights with --fork")
    if "steps" in given and not arguments.steps.isdecimal():
        raise SettingsError(f"setting steps {arguments.steps!r}: with --resume, name how many steps more")
    with opened(arguments) as workspace:
        job = workspace.jobs.extend(arguments.resume, int(arguments.steps)) if "steps" in given else workspace.jobs.resume(arguments.resume)
        return _watch(workspace, job.id, arguments.json, seen=_locator(workspace, job.id))


def _fork(arguments: argparse.Namespace) -> int:
    """A new run from another's weights; the settings named are changed, all others are those of that run."""
    if arguments.config:
        raise SettingsError("--fork takes the settings of the run; name the ones to change as flags instead of a file")
    changes = {name: getattr(arguments, name) for name in TrainConfig.model_fields if name in vars(arguments)}
    with opened(arguments) as workspace:
        if "images" in changes:
            changes["images"] = locate(changes["images"], lambda name: knows(workspace.sets.show, name))
        if changes.get("output"):
            changes["output"] = _absolute(changes["output"])
        job = workspace.jobs.fork(arguments.resume, changes)
        return _watch(workspace, job.id, arguments.json, seen=_locator(workspace, job.id, changes.get("output")))


def evaluate(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        images = locate(arguments.images, lambda name: knows(workspace.sets.show, name)) if arguments.images else None
        job = workspace.jobs.evaluate(arguments.run_name, images)
        code = _watch(workspace, job.id, arguments.json)
        if code == 0 and not arguments.json:
            verdict(workspace.jobs.show(job.id).result)
        return code


def generate(arguments: argparse.Namespace) -> int:
    folder = _folder_to_write(arguments.output)
    with opened(arguments) as workspace:
        config = _drawn_as(workspace, arguments)
        loras = tuple(row.model_copy(update={"name": locate(row.name, lambda name: knows(workspace.library.find, name))}) for row in config.loras)
        starts = {name: locate(ref, workspace.inputs.known) for name in ("init_image", "mask") if (ref := getattr(config, name))}
        job = workspace.jobs.generate(config.model_copy(update=_base_paths(workspace, config) | {"loras": loras} | starts))
        return _watch(workspace, job.id, arguments.json, seen=_collector(workspace, job.id, folder))


def _drawn_as(workspace: "Workspace", arguments: argparse.Namespace) -> GenerateConfig:
    """The flags and CONFIG.toml, over the presets, over the picture that is recalled."""
    under: dict[str, Any] = {}
    if arguments.recall:
        recalled = workspace.gallery.recalled(arguments.recall if knows(workspace.gallery.show, arguments.recall) else Path(arguments.recall).expanduser())
        under = recalled.settings
        for trouble in recalled.troubles:
            tell(f"note: {trouble}")
    config = settings_from(GenerateConfig, arguments, under)
    given = {name: getattr(config, name) for name in under.keys() | config.model_fields_set}
    for name in arguments.preset:
        given = workspace.presets.show(name).applied(given)
    return build(GenerateConfig, given)


def export(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        source = locate(arguments.source, lambda name: True)
        asked = {"format": arguments.format, "dtype": arguments.dtype, "tags": arguments.tags}
        asked |= {"thumbnail": not arguments.no_thumbnail, "side_files": arguments.side_files}
        job = workspace.jobs.export(source, output=_absolute(arguments.output), **asked)
        code = _watch(workspace, job.id, arguments.json)
        if code == 0 and arguments.report:
            _tell_proof(workspace.jobs.report(job.id), arguments.json)
        return code


def _tell_proof(report: Mapping[str, Any], as_json: bool) -> None:
    """How a file was proven and who will load it."""
    if as_json:
        return emit({"kind": "report", **report})
    for row in report["loaders"]:
        found = f"{row['modules']} layers, largest difference {row['worst']:.1e}" if row["run"] else row["note"]
        print(f"read by {row['loader']}: {found}")
    for note in report["notes"]:
        print(note)
    verdicts(report["clients"])


def _watch(workspace: "Workspace", job: str, as_json: bool, seen: Callable[[Event], Event] | None = None) -> int:
    if as_json:
        emit({"kind": "submitted", "job": job})
    else:
        tell(f"job {job}")
    return follow(workspace, job, as_json=as_json, seen=seen)


def _base_paths(workspace: "Workspace", config: BaseChoice) -> dict[str, object]:
    """The base and its parts, absolute where they are files or folders."""

    def known(name: str) -> bool:
        try:
            workspace.bases.find(name)
        except BaseError:
            return False
        return True

    parts = {"base": config.base, "vae": config.vae, "encoders": config.encoders}
    return {name: locate(value, known) for name, value in parts.items() if value}


def _locator(workspace: "Workspace", job: str, output: object = None) -> Callable[[Event], Event]:
    """Reports files by their full paths; the finished LoRA where the user asked for it."""

    def seen(event: Event) -> Event:
        if isinstance(event, Exported) and output and "probe" not in event.report:
            return event.model_copy(update={"path": str(output)})
        if isinstance(event, Exported | Sample) and not Path(event.path).is_absolute():
            return event.model_copy(update={"path": str(workspace.jobs.file(job, event.path))})
        return event

    return seen


def _absolute(name: str) -> str:
    return str(Path(name).expanduser().absolute())


def _collector(workspace: "Workspace", job: str, folder: Path) -> Callable[[Event], Event]:
    """Copies every finished picture to `folder` and reports it under its new path."""

    def seen(event: Event) -> Event:
        if not isinstance(event, Image | Sheet):
            return event
        source = workspace.jobs.file(job, event.path)
        return event.model_copy(update={"path": str(_copy(source, folder))})

    return seen


def _copy(source: Path, folder: Path) -> Path:
    """A copy under a name that is free there; whole or not at all."""
    part = folder / f".{source.name}.{secrets.token_hex(4)}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, part)
        number = 0
        while True:
            target = folder / (source.name if number == 0 else f"{source.stem}-{number}{source.suffix}")
            try:
                os.link(part, target)  # fails if the name is taken, unlike a rename
                return target
            except FileExistsError:
                number += 1
            except OSError:
                os.replace(part, target)  # a file system without links
                return target
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); the picture stays in the studio's gallery") from None
    finally:
        part.unlink(missing_ok=True)


def _folder_to_write(name: str) -> Path:
    """The folder, made with the first picture. Raises InputError before anything starts if nothing can be written there."""
    folder = Path(name).expanduser().absolute()
    try:
        with tempfile.TemporaryFile(dir=next(there for there in (folder, *folder.parents) if there.exists())):
            pass
    except OSError as error:
        raise InputError(f"output {folder} cannot be written ({error.strerror}); name another folder with --output") from None
    return folder
