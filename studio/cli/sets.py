"""images: image sets."""

import argparse
from pathlib import Path

from studio.cli.opening import opened
from studio.cli.output import details, listing, tell


def list_sets(arguments: argparse.Namespace) -> int:
    columns = {"NAME": "name", "PICTURES": "pictures", "CAPTIONED": "captioned", "TRIGGER": "trigger", "ID": "id"}
    with opened(arguments) as workspace:
        return listing(workspace.sets.list(), columns, as_json=arguments.json, empty="No image sets yet. Make one: lora-studio images import FOLDER")


def show(arguments: argparse.Namespace) -> int:
    columns = {"PICTURE": "name", "WIDTH": "width", "HEIGHT": "height", "CAPTION": "caption"}
    with opened(arguments) as workspace:
        found = workspace.sets.show(arguments.name)
        return details(found, as_json=True) if arguments.json else listing(found.items, columns, as_json=False, empty="No pictures in it yet.")


def import_set(arguments: argparse.Namespace) -> int:
    folder = Path(arguments.folder).expanduser().absolute()
    with opened(arguments) as workspace:
        report = workspace.sets.import_folder(arguments.name or folder.name, folder)
        for outcome in report.rejected:
            tell(f"left out {outcome.name}: {outcome.message}")
        if arguments.json:
            return details(report, as_json=True)
        tell(f"{len(report.accepted)} pictures taken, {len(report.rejected)} left out")
        return 0


def remove(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        found = workspace.sets.show(arguments.name)
        workspace.sets.remove(found.id)
        tell(f"removed {found.name}")
        return 0
