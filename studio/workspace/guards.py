"""Refusing what would break work in progress."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from studio.errors import RunError
from studio.library.models import JobRow


def not_in_use(session: Session, mark: str, what: str) -> None:
    """Raise RunError if a queued, running or paused job needs it."""
    columns = (JobRow.id, JobRow.name, JobRow.state, JobRow.uses)
    for row in session.execute(select(*columns).where(JobRow.state.in_(("queued", "running", "paused")))):
        if mark in row.uses:
            raise RunError(f"{what} is used by the {row.state} job {row.name!r} ({row.id}); cancel it first, or wait for its end")
