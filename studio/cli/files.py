"""inspect and library: LoRA files and what the studio knows of them."""

import argparse
from pathlib import Path

from studio.cli.opening import opened
from studio.cli.output import details, listing, tell

COLUMNS = {"NAME": "name", "FAMILY": "family", "BASE": "base", "TRIGGER": "trigger", "RANK": "rank", "ID": "id"}


def inspect(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        return details(workspace.library.inspect(Path(arguments.file)), as_json=arguments.json)


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
