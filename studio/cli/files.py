"""inspect and library: LoRA files and what the studio knows of them."""

import argparse
from pathlib import Path

from studio.cli.flags import EDITABLE
from studio.cli.opening import opened
from studio.cli.output import details, listing, tell, verdicts
from studio.config import BaseChoice
from studio.errors import InputError

COLUMNS = {"NAME": "name", "FAMILY": "family", "BASE": "base", "TRIGGER": "trigger", "RANK": "rank", "ID": "id"}


def inspect(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        base = workspace.bases.resolve(BaseChoice(base=arguments.base)) if arguments.base else None
        found = workspace.library.inspect(Path(arguments.file), base, arguments.hashes)
        if arguments.json:
            return details(found, as_json=True)
        clients, fit = found.pop("clients"), found.pop("fit", None)
        details(found, as_json=False)
        if fit:
            print(f"fits {fit['base']}: {'yes' if fit['fits'] else 'no'}, {fit['reason']}")
        return verdicts(clients)


def edit(arguments: argparse.Namespace) -> int:
    changes: dict[str, str | None] = {name: getattr(arguments, name) for name in EDITABLE if getattr(arguments, name) is not None}
    for entry in arguments.set or ():
        key, mark, value = entry.partition("=")
        if not mark:
            raise InputError(f"--set {entry}: write KEY=VALUE")
        changes[key] = value
    changes |= dict.fromkeys(arguments.unset or ())
    with opened(arguments) as workspace:
        words = workspace.library.edit(arguments.name, changes, Path(arguments.picture) if arguments.picture else None)
        return details({"metadata": words}, as_json=arguments.json)


def list_adapters(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        found = workspace.library.list(arguments.query)
        return listing(found, COLUMNS, as_json=arguments.json, empty="No LoRAs yet. Train one, or take one in: lora-studio library add FILE")


def add(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        return details(workspace.library.add(Path(arguments.file)), as_json=arguments.json)


def show(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        return details(workspace.library.show(arguments.name), as_json=arguments.json)


def remove(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        found = workspace.library.show(arguments.name)
        workspace.library.remove(found.id)
        tell(f"removed {found.name}")
        return 0
