"""What the command line prints: tables and words for people, JSON lines for programs."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

MOMENTS = ("queued", "created", "started", "finished", "updated")  # fields that hold seconds since 1970


def values(record: Any) -> Any:
    """A record of the workspace as JSON values."""
    if isinstance(record, BaseModel):
        return record.model_dump(mode="json")
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {field.name: values(getattr(record, field.name)) for field in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {str(key): values(value) for key, value in record.items()}
    if isinstance(record, Sequence | set | frozenset) and not isinstance(record, str | bytes):
        return [values(item) for item in record]
    return str(record) if isinstance(record, Path) else record


def emit(record: Any) -> None:
    """One JSON object on one line, at once."""
    print(json.dumps(values(record), ensure_ascii=False), flush=True)


def tell(words: str) -> None:
    """A line for people, away from stdout."""
    print(words, file=sys.stderr, flush=True)


def listing(records: Iterable[Any], columns: Mapping[str, str], *, as_json: bool, empty: str) -> int:
    """Records as JSON lines or as a table: `columns` maps a heading to the field under it."""
    rows = [values(record) for record in records]
    if as_json:
        for row in rows:
            emit(row)
        return 0
    if not rows:
        tell(empty)
        return 0
    cells = [[*columns], *([_cell(row.get(field)) for field in columns.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0


def details(record: Any, *, as_json: bool) -> int:
    """One record, as JSON or as `field: value` lines."""
    found = values(record)
    if as_json:
        emit(found)
        return 0
    for key, value in found.items():
        if isinstance(value, dict) and value:
            print(f"{key.replace('_', ' ')}:")
            for name, inner in value.items():
                print(f"  {name}: {_short(_cell(inner))}")
        elif key in MOMENTS and isinstance(value, float):
            print(f"{key}: {datetime.fromtimestamp(value).astimezone().isoformat(sep=' ', timespec='seconds')}")
        elif value not in (None, "", [], {}):
            print(f"{key.replace('_', ' ')}: {_short(_cell(value))}")
    return 0


def verdicts(clients: Iterable[Mapping[str, Any]]) -> int:
    """Which programs load a file, as a table with the reasons under it."""
    rows = [
        {
            "client": row["client"],
            "loads": row["loads"],
            "modules": f"{row['matched']} of {row['total']}" if row["matched"] else "",
            "strength": {True: "right", False: "wrong", None: ""}[row["strength"]],
            "base": row["label"] if row["listed"] else f"{row['label']} (hidden)",
            "why": "; ".join(row["reasons"]),
        }
        for row in clients
    ]
    columns = {"CLIENT": "client", "LOADS": "loads", "MODULES": "modules", "STRENGTH": "strength", "SHOWN AS": "base", "WHY": "why"}
    return listing(rows, columns, as_json=False, empty="no other program is known to load it") if rows else 0


def size(n_bytes: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


def _short(text: str, limit: int = 400) -> str:
    """Enough of a long value to know it; `--json` has all of it."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
