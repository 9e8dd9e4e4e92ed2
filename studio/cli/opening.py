"""The workspace of the data folder that a command names."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from studio.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Callable

    from studio.workspace import Workspace


@contextlib.contextmanager
def opened(arguments: argparse.Namespace) -> "Iterator[Workspace]":
    from studio.workspace import Workspace

    workspace = Workspace.open(Path(arguments.data) if arguments.data else None)
    try:
        yield workspace
    finally:
        workspace.close()


def knows(look: "Callable[[str], object]", name: str) -> bool:
    """Whether the studio has something of that name."""
    try:
        look(name)
    except NotFound:
        return False
    return True
