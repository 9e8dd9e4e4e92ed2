"""jobs: the queue."""

import argparse

from studio.cli.follow import follow as watch
from studio.cli.opening import opened
from studio.cli.output import details, listing, tell

COLUMNS = {"ID": "id", "KIND": "kind", "NAME": "name", "STATE": "state", "STEP": "step", "OF": "total", "WHAT": "message"}


def list_jobs(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        return listing(workspace.jobs.list(), COLUMNS, as_json=arguments.json, empty="No jobs yet.")


def show(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        return details(workspace.jobs.show(arguments.id), as_json=arguments.json)


def cancel(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        workspace.jobs.cancel(arguments.id)
        return details(workspace.jobs.show(arguments.id), as_json=True) if arguments.json else _said(f"asked job {arguments.id} to stop")


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


def _said(words: str) -> int:
    tell(words)
    return 0
