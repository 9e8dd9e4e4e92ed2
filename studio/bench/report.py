"""The table of a benchmark: rows kept as JSON lines, and the same for people."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from studio import __version__
from studio.bench.cases import REFERENCES

ROWS = "rows.jsonl"
PACKAGES = ("torch", "diffusers", "transformers", "peft", "triton")
COLUMNS: Mapping[str, str] = {
    "task": "task",
    "family": "family",
    "px": "resolution",
    "batch": "batch",
    "format": "precision",
    "mode": "mode",
    "s/step": "seconds",
    "pictures/s": "pictures_per_second",
    "MFU %": "mfu_percent",
    "x plain": "times_plain",
    "peak GiB": "peak_reserved_gib",
    "first step s": "first_step_seconds",
    "loss differs by": "loss_difference",
}


def machine(device: torch.device) -> dict[str, Any]:
    """What a reader must know to compare: card or processor, versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    found: dict[str, Any] = {"device": name, "threads": torch.get_num_threads(), "system": platform.system(), "python": platform.python_version()}
    return found | {"lora-studio": __version__} | {package: _version(package) for package in PACKAGES}


def finished(folder: Path | None) -> dict[str, dict[str, Any]]:
    """Rows of an earlier call by their keys; a last line that was cut off is left out."""
    path = folder / ROWS if folder else None
    if path is None or not path.is_file():
        return {}
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if "error" not in row:
            rows[row["key"]] = row
    return rows


def keep(folder: Path | None, row: Mapping[str, Any]) -> None:
    """Add a row to the folder's rows."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ROWS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def compared(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with what each gains over the plain loop of the same case, and how far its losses are from it, relative."""
    plain = {_place(row): row for row in reversed(rows) if row["mode"] == REFERENCES[0] and "seconds" in row}
    found = []
    for row in rows:
        other, made = plain.get(_place(row)), dict(row)
        if other is not None and "seconds" in row:
            made["times_plain"] = round(other["seconds"] / row["seconds"], 2)
            pairs = list(zip(row.get("losses") or [], other.get("losses") or [], strict=False))
            if pairs:
                made["loss_difference"] = f"{max(abs(ours - theirs) / abs(theirs) for ours, theirs in pairs):.1e}"
        found.append(made)
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of steps, for people."""
    return columns(compared(rows), COLUMNS)


def columns(rows: Sequence[Mapping[str, Any]], wanted: Mapping[str, str]) -> str:
    """Rows in columns, title -> field; what went wrong in a row stands below."""
    cells = [list(wanted), *([_cell(row.get(field)) for field in wanted.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(wanted))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([*lines, *(f"{row['key']}: {row['error']}" for row in rows if "error" in row)])


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("task", "family", "resolution", "batch", "precision"))


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
