"""jobs: the queue."""

import argparse

from studio.cli.follow import follow as watch
from studio.cli.judging import curve
from studio.cli.opening import opened
from studio.cli.output import details, emit, listing, tell, values
from studio.errors import SettingsError

COLUMNS = {"ID": "id", "KIND": "kind", "NAME": "name", "STATE": "state", "STEP": "step", "OF": "total", "WHAT": "message"}


def list_jobs(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        return listing(workspace.jobs.list(), COLUMNS, as_json=arguments.json, empty="No jobs yet.")


def show(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        job, looks = workspace.jobs.show(arguments.id), workspace.jobs.validations(arguments.id)
        if arguments.json:
            emit({**values(job), "validations": values(looks)})
            return 0
        details(job, as_json=False)
        return curve(looks)


def cancel(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        workspace.jobs.cancel(arguments.id)
        return details(workspace.jobs.show(arguments.id), as_json=True) if arguments.json else _said(f"asked job {arguments.id} to stop")


def pause(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        job = workspace.jobs.pause(arguments.id)
        if arguments.json:
            return details(job, as_json=True)
        return _said(f"job {job.name} is held back" if job.state == "paused" else f"asked job {job.name} to pause at its next step")


def pin(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        step = workspace.jobs.pinned(arguments.id)
        ref = f"{workspace.jobs.show(arguments.id).name}@{step}"
        if arguments.json:
            emit({"kind": "pinned", "step": step, "checkpoint": ref})
            return 0
        return _said(f"step {step} is kept: {ref} names it, for export and in a stack")


def move(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        job = workspace.jobs.move(arguments.id, _number("place", arguments.place) - 1)
        return details(job, as_json=True) if arguments.json else _said(f"moved job {job.name}")


def priority(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        job = workspace.jobs.prioritise(arguments.id, _number("priority", arguments.priority))
        return details(job, as_json=True) if arguments.json else _said(f"job {job.name} has priority {job.priority}")


def duplicate(arguments: argparse.Namespace) -> int:
    wrong = next((text for text in arguments.set if "=" not in text), None)
    if wrong is not None:
        raise SettingsError(f"--set {wrong!r}: write NAME=VALUE")
    changes = dict(text.split("=", 1) for text in arguments.set)
    with opened(arguments) as workspace:
        job = workspace.jobs.duplicate(arguments.id, {name.replace("-", "_"): value for name, value in changes.items()})
        return watch(workspace, job.id, as_json=arguments.json)


def command(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        line = workspace.command_line(arguments.id)
        if arguments.json:
            emit({"command": line})
        else:
            print(line)
        return 0


def retry(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        job = workspace.jobs.retry(arguments.id)
        return watch(workspace, job.id, as_json=arguments.json)


def resume(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        job = workspace.jobs.resume(arguments.id)
        return watch(workspace, job.id, as_json=arguments.json)


def follow(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        return watch(workspace, arguments.id, as_json=arguments.json)


def _number(what: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SettingsError(f"{what} {text!r} is no whole number") from None


def _said(words: str) -> int:
    tell(words)
    return 0
