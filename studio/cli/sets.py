"""images: image sets."""

import argparse
from pathlib import Path

from studio.cli.follow import follow as watch
from studio.cli.opening import opened
from studio.cli.output import details, emit, listing, tell
from studio.errors import InputError


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
    sources = [Path(source).expanduser().absolute() for source in arguments.source]
    name = arguments.name or sources[0].stem
    with opened(arguments) as workspace:
        if sources[0].is_dir():
            if len(sources) > 1:
                raise InputError(f"{sources[0].name} is a folder, so it must be the only source; import the others into sets of their own")
            report = workspace.sets.import_folder(name, sources[0], arguments.trigger)
        else:
            report = workspace.sets.import_files(name, [(source.name, source) for source in sources], arguments.trigger)
        for outcome in report.rejected:
            tell(f"left out {outcome.name}: {outcome.message}")
        if arguments.json:
            return details(report, as_json=True)
        tell(f"{len(report.accepted)} files taken into {name!r}, {len(report.rejected)} left out")
        return 0


def remove(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        found = workspace.sets.show(arguments.name)
        workspace.sets.remove(found.id)
        tell(f"removed {found.name}")
        return 0


def caption(arguments: argparse.Namespace) -> int:
    names = ("model", "prompt", "replace", "max_tokens")
    asked = {"images": arguments.name, **{name: getattr(arguments, name) for name in names}}
    with opened(arguments) as workspace:
        return watch(workspace, workspace.captions.make(asked).id, as_json=arguments.json)


def uncaption(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        back = workspace.captions.undo(arguments.id)
        if arguments.json:
            emit({"restored": back})
        else:
            tell(f"{back} captions are as they were before")
        return 0
