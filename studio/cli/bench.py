"""bench: fill a table of measured speed in a process of its own, so that this one never imports torch."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from studio.errors import SettingsError


def bench(arguments: argparse.Namespace) -> int:
    spec = {
        "families": _words(arguments.families),
        "resolutions": _numbers("resolutions", arguments.resolutions),
        "batches": _numbers("batches", arguments.batches),
        "precisions": _words(arguments.precisions),
        "modes": _words(arguments.modes),
        "tasks": _words(arguments.tasks),
        "budgets": _budgets(arguments.budgets),
        "weights": arguments.weights,
        "steps": _numbers("steps", arguments.steps)[0],
        "out": str(Path(arguments.out).expanduser().absolute()) if arguments.out else None,
        "json": arguments.json,
    }
    return subprocess.run([sys.executable, "-m", "studio.bench", json.dumps(spec)], check=False).returncode


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise SettingsError(f"--{name} {text!r} is not a list of whole numbers, for example 512,1024") from None


def _budgets(text: str) -> list[float]:
    try:
        return [float(word) for word in _words(text)]
    except ValueError:
        raise SettingsError(f"--budgets {text!r} is not a list of numbers, for example 8,12,24") from None
