"""A job begun once more: after what it has said so far, from its last checkpoint where it has one."""

import itertools
import time
from collections.abc import Mapping
from typing import Any, Literal

from studio.errors import RunError
from studio.events import Exported, Image, Warned
from studio.jobs.folder import EventWriter, JobFolder, Manifest
from studio.jobs.progress import advanced
from studio.library.database import Database
from studio.library.models import JobRow


def begin(db: Database, folder: JobFolder, state: str, why: Literal["resume", "extend"], settings: Mapping[str, Any]) -> None:
    """Put a job that stopped in `state` into the queue again. Raises RunError if it is in another one by now."""
    _begin(db, folder, state, why, settings)


def again(db: Database, folder: JobFolder, message: str, retries: int) -> bool:
    """Begin a running job again whose worker was lost, told as a warning; False if it has been often enough, or must not be.

    Jobs whose pictures or files are in the library already would bring them twice.
    """
    manifest = folder.manifest()
    tried = len(list(itertools.takewhile(lambda segment: segment.why == "retry", reversed(manifest.segments))))
    if tried >= retries or (manifest.kind != "train" and _delivered(folder, manifest)):
        return False
    checkpoints = folder.checkpoints()
    where = f"it goes on from the checkpoint of step {checkpoints[-1].step}" if checkpoints else "it begins again"
    warning = Warned(message=f"{message}; {where} (retry {tried + 1} of {retries})")
    writer = EventWriter(folder.events_file)
    writer.append(warning)
    writer.close()
    _begin(db, folder, "running", "retry", {}, warning)
    return True


def _begin(
    db: Database, folder: JobFolder, state: str, why: Literal["retry", "resume", "extend"], settings: Mapping[str, Any], warning: Warned | None = None
) -> None:
    checkpoints = folder.promised()
    step = checkpoints[-1].step if checkpoints else 0
    if checkpoints:
        settings = {**settings, "start_from": str(folder.path / checkpoints[-1].path)}
    with db.write() as session:  # one transaction, so that two clicks cannot both begin a stretch
        row = session.get_one(JobRow, folder.id, with_for_update=True)
        if row.state != state:
            raise RunError(f"job {row.name!r} is {row.state} by now; look again")
        manifest = folder.begin_segment(why, settings)
        told = warning.message if warning else f"goes on from step {step}" if step else "begins again"
        row.state, row.message, row.remedy, row.kept = "queued", told, "", ""
        row.result = advanced(row.values(), [warning])["result"] if warning else row.result
        row.segment, row.offset, row.settings = manifest.segment.number, manifest.segment.offset, manifest.settings
        row.step, row.total = step, int(manifest.settings.get("steps") or row.total)
        row.updated = time.time()
        row.queued = row.queued if why == "retry" else row.updated  # whoever lost a worker does not lose the place in the line
        row.finished = row.cancelling = None


def _delivered(folder: JobFolder, manifest: Manifest) -> bool:
    return any(isinstance(event, Image | Exported) for event in folder.read(manifest.segment.offset)[0])
