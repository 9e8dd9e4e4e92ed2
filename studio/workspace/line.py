"""The order in which queued jobs run: by priority, then by a moment that moving a job sets between those of its neighbours."""

import time
from typing import Any

from sqlalchemy import case, func, select, update
from sqlalchemy.orm import Session

from studio.errors import RunError
from studio.jobs.progress import NOT_RESPONDING
from studio.library.models import JobRow
from studio.workspace.records import JobLine

ORDER = (JobRow.priority.desc(), JobRow.queued, JobRow.id)
NARROW = 2e-6  # seconds between two neighbours, under which a moment between them may not be told from theirs


# Columns alone: no JSON is read and no object kept for thousands of rows
_SHOWN = [getattr(JobRow, name) for name in JobLine.model_fields if name != "eta"]


def waiting(session: Session) -> list[JobLine]:
    """Running jobs, then queued ones in the order they will run."""
    running_first = case((JobRow.state == "running", 0), else_=1)
    found = session.execute(select(*_SHOWN).where(JobRow.state.in_(("running", "queued"))).order_by(running_first, *ORDER))
    return [JobLine(**{**row._mapping, "cancelling": row.cancelling is not None, "eta": eta(row)}) for row in found]


def end(session: Session, moment: float) -> float:
    """A place behind all that wait: that moment, or a little after the last one where the clock was set back."""
    last = session.scalar(select(func.max(JobRow.queued)).where(JobRow.state == "queued"))
    return moment if last is None else max(moment, last + 1e-3)


def eta(row: Any) -> float | None:
    """Seconds left, while a job runs and its steps are known. `row`: a JobRow, or its columns."""
    known = row.state == "running" and row.step_seconds > 0 and row.total > 0 and row.message != NOT_RESPONDING
    return max(0.0, (row.total - row.step) * row.step_seconds) if known else None


def move(session: Session, id: str, place: int) -> None:
    """Put a queued job at that place, 0 being the next to run. It takes the priority of where it goes. Raises RunError if it does not wait."""
    statement = select(JobRow.id, JobRow.priority, JobRow.queued).where(JobRow.state == "queued").order_by(*ORDER)
    waiting = [(row.id, row.priority, row.queued) for row in session.execute(statement)]
    others = [row for row in waiting if row[0] != id]
    if len(others) == len(waiting):
        raise RunError(f"job {id} does not wait; only queued jobs can be moved")
    place = min(max(0, place), len(others))
    before, after = others[place - 1] if place else None, others[place] if place < len(others) else None
    if before and after and before[1] == after[1] and after[2] - before[2] < NARROW:
        _spread(session, others)
        return move(session, id, place)
    near = after or before
    if near is None:
        return
    if before and after and before[1] == after[1]:
        moment = (before[2] + after[2]) / 2
    elif after:
        moment = after[2] - 1.0
    else:  # behind the last one, but before whatever is submitted from now on
        moment = max((near[2] + time.time()) / 2, near[2] + 1e-3)
    _put(session, id, near[1], moment)


def _spread(session: Session, waiting: list[tuple[str, int, float]]) -> None:
    """A second between neighbours again, none of them later than now."""
    now = time.time()
    session.execute(update(JobRow), [{"id": row[0], "queued": now - len(waiting) + i, "updated": now} for i, row in enumerate(waiting)])


def _put(session: Session, id: str, priority: int, moment: float) -> None:
    session.execute(update(JobRow).where(JobRow.id == id, JobRow.state == "queued").values(priority=priority, queued=moment, updated=time.time()))
