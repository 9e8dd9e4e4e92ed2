"""A training that runs, as a LoRA of a stack: what it has learnt until now, kept as a checkpoint at its next step boundary."""

import time
from collections.abc import Callable

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from studio.errors import RunError
from studio.events import Checkpoint
from studio.jobs.folder import JobFolder
from studio.library.layout import Layout
from studio.library.models import JobRow

LIVE = "@live"  # behind a run's name: as it is now
PATIENCE = 120.0  # seconds until the next step boundary; far longer than a step
LOOK_SECONDS = 0.1


def with_step(session: Session, layout: Layout, ref: str) -> list[str]:
    """Ids of the runs that RUN@STEP may mean: of that name or id, with a checkpoint of that step. None for any other text."""
    name, _, step = ref.rpartition("@")
    if not name or not step.isdecimal():
        return []
    runs = session.scalars(select(JobRow.id).where(JobRow.kind == "train", or_(JobRow.id == name, JobRow.name == name)))
    return [id for id in runs if any(one.step == int(step) for one in JobFolder.of(layout.jobs, id).checkpoints())]


def pinned(folder: JobFolder, running: Callable[[], bool], patience: float = PATIENCE) -> int:
    """The step of a checkpoint that the run makes now. Raises RunError if it makes none."""
    _, offset = folder.read()
    folder.request("keep")
    until = time.monotonic() + patience
    while True:
        alive = running()  # looked at first, so that the last words of a run that ends are read
        events, offset = folder.read(offset)
        found = next((event.step for event in events if isinstance(event, Checkpoint)), None)
        if found is not None:
            return found
        if not alive:
            raise RunError("the run ended before it reached a step; take its last checkpoint")
        if time.monotonic() > until:
            raise RunError(f"the run has reached no step in {patience:.0f} s; it may still be loading, so try again when it counts steps")
        time.sleep(LOOK_SECONDS)
