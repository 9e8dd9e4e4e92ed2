"""What a job made, taken into the library and the gallery; doing it twice changes nothing."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from studio.errors import StudioError, Unavailable
from studio.events import TERMINAL, Event, Exported, Image, Sample
from studio.jobs.folder import JobFolder, Manifest
from studio.library import adapters, pictures, sets
from studio.library.database import Database
from studio.library.files import refuse_full
from studio.library.layout import Layout

KEPT = ("passed", "faults", "format", "dtype", "modules", "worst_difference", "loaders", "clients", "notes", "checkpoint", "probe")
logger = logging.getLogger(__name__)


def register(db: Database, layout: Layout, folder: JobFolder, segment: int, events: Iterable[Event]) -> list[str]:
    """Take in what these events tell of; the sentences that come back say what could not be taken in, and why.

    Raises Unavailable while the database does not answer or the disk is full: what was told is to be taken in again later.
    """
    troubles = []
    for event in events:
        try:
            if isinstance(event, Image):
                pictures.register(db, layout, folder.id, segment, event)
            elif isinstance(event, Exported) and not Path(event.path).is_absolute():
                _adapter(db, layout, folder, segment, event)
            elif event.kind in TERMINAL:
                _captions(db, layout, folder)
        except Unavailable:
            raise  # the next round takes it in
        except (StudioError, OSError) as error:
            refuse_full(error, layout.root)
            logger.exception("job %s: %s was not taken in", folder.id, event.kind)
            place = getattr(event, "path", "")
            troubles.append(f"{place} stays in the job's folder; it could not be put into the library: {error}")
    return troubles


def _captions(db: Database, layout: Layout, folder: JobFolder) -> None:
    """Count a set anew whose captions a job has written."""
    manifest = folder.manifest()
    if manifest.kind == "caption" and sets.known(db, manifest.paths["set"]):
        sets.recount(db, layout, manifest.paths["set"])


def _adapter(db: Database, layout: Layout, folder: JobFolder, segment: int, event: Exported) -> None:
    manifest = folder.manifest()
    if manifest.kind == "train":
        told = {"name": manifest.name, "run": manifest.id, "base": manifest.base.get("name"), "trigger": manifest.settings.get("trigger")}
    else:
        told = {"name": manifest.name, "run": manifest.paths.get("run", "")}
    id = f"{folder.id}-{segment}"
    if manifest.kind == "train" and "probe" in event.report:  # the smaller one beside the run's own
        id, told = f"{id}t", {**told, "name": Path(event.path).stem}
    adapters.register(db, layout, id, folder.path / event.path, {**told, "created": event.time, "report": _kept(event)}, _last_sample(folder, manifest))


def _kept(event: Exported) -> dict[str, Any]:
    """The proof of a file without the many figures of a tool."""
    return {key: value for key, value in event.report.items() if key in KEPT}


def _last_sample(folder: JobFolder, manifest: Manifest) -> Path | None:
    if manifest.kind != "train":
        return None
    samples = [event for event in folder.read()[0] if isinstance(event, Sample)]
    first_of_last = next((sample for sample in samples if sample.step == samples[-1].step), None)
    return folder.path / first_of_last.path if first_of_last else None
