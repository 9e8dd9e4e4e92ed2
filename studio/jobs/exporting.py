"""Adapter files for others, in the worker: written with their history, read back and compared."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studio.config import TrainConfig, build
from studio.errors import RunError
from studio.events import Started
from studio.families.base import Base
from studio.jobs.folder import JobFolder, Manifest
from studio.jobs.spec import Dtype, Format
from studio.library.files import write_whole

HISTORY = "history.json"


def write(source: Path, target: Path, format: Format, dtype: Dtype, metadata: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Write the adapter of a file or checkpoint to `target` and compare it with what is read back; the report of that."""
    from studio.lora import formats
    from studio.training import checkpoint

    adapter = checkpoint.adapter(source.parent) if checkpoint.is_checkpoint(source.parent) else formats.read(source)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        formats.write(adapter, target, format=format, dtype=dtype, metadata=adapter.metadata if metadata is None else metadata)
    except OSError as error:
        raise RunError(f"{target} cannot be written ({error.strerror}); the checkpoint is kept: export it to another place") from error
    return dict(formats.verify(target, adapter))


def remember(folder: JobFolder, started: Started, images: str, captions: Sequence[str]) -> None:
    """Keep what later exports of this run say about it, for its pictures and captions may change."""
    keys = ("buckets", "objective", "precision")
    facts = {key: started.facts[key] for key in keys if key in started.facts}
    history = {"started": started.time, "images": images, "captions": list(captions), **facts}
    write_whole(folder.path / HISTORY, json.dumps(history, ensure_ascii=False).encode())


def metadata(folder: JobFolder, manifest: Manifest, base: Base, step: int) -> dict[str, str]:
    """The metadata of a file made from the checkpoint of that step."""
    from studio.lora.provenance import Trained, training_metadata

    path = folder.path / HISTORY
    history: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"started": manifest.created, "images": manifest.name, "captions": []}
    buckets = {_size(size): count for size, count in history.pop("buckets", {}).items()}
    run = Trained(steps=step, finished=time.time(), buckets=buckets, **history)
    return training_metadata(build(TrainConfig, manifest.settings), base, run)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)
