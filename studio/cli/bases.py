"""base: base models."""

import argparse
import sys
from pathlib import Path

from studio.cli.follow import Display
from studio.cli.opening import opened
from studio.cli.output import details, emit, listing, size, tell, values


def list_bases(arguments: argparse.Namespace) -> int:
    columns = {"NAME": "name", "FAMILY": "family_title", "SIZE": "size", "PATH": "path", "LICENCE": "licence", "PROBLEM": "problem"}
    with opened(arguments) as workspace:
        found = [{**values(base), "size": size(base.bytes)} for base in workspace.bases.list()]
        return listing(found, columns, as_json=arguments.json, empty="No base models.")


def add(arguments: argparse.Namespace) -> int:
    path = Path(arguments.path).expanduser().absolute()
    with opened(arguments) as workspace:
        return details(workspace.bases.add(arguments.name, path, arguments.vae, arguments.encoders), as_json=arguments.json)


def download(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        display = Display(sys.stderr)
        found = workspace.bases.download(arguments.repo, arguments.token, progress=lambda done, total: display.downloading(arguments.repo, done, total))
        return details(found, as_json=arguments.json)


def remove(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        workspace.bases.remove(arguments.name)
        if arguments.json:
            emit({"removed": arguments.name})
        else:
            tell(f"forgot base {arguments.name}")
        return 0
