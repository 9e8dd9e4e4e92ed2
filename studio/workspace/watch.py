"""From rows and folders to the hub: what happened to jobs since the last look, whichever process dispatches them."""

import time
from collections.abc import Callable

from sqlalchemy import select

from studio.errors import NotFound
from studio.jobs.folder import JobFolder
from studio.library.database import Database
from studio.library.layout import Layout
from studio.library.models import JobRow
from studio.workspace.hub import Hub
from studio.workspace.records import JobRecord

OVERLAP_SECONDS = 60.0  # a row may come so much later than its stamp: its writer waited for the database, or has a clock that is behind
AT_ONCE = 500  # rows of one question; databases take so many values


class Watch:
    """Publishes new events and changed rows, each once."""

    def __init__(self, db: Database, layout: Layout, hub: Hub, record: Callable[[JobRow], JobRecord]) -> None:
        self._db = db
        self._layout = layout
        self._hub = hub
        self._record = record
        self._begun = time.time()
        self._seen: dict[str, float] = {}
        self._offsets: dict[str, int] = {}
        self._running: set[str] = set()
        self._looked = False

    def look(self) -> None:
        # No later than now: where a clock was set back, what is stamped from then on is older than what was seen before
        since = min(max([self._begun, *self._seen.values()]), time.time()) - OVERLAP_SECONDS
        recent = (JobRow.updated > since) | (JobRow.state == "running") | JobRow.id.in_(self._running)
        with self._db.read() as session:
            found = [(row.id, row.updated, row.state) for row in session.execute(select(JobRow.id, JobRow.updated, JobRow.state).where(recent))]
            if not self._looked:  # what was so before this process began is in the lists that pages load
                self._seen, self._looked = {id: updated for id, updated, state in found if updated <= self._begun and state != "running"}, True
            new = [id for id, updated, state in found if self._seen.get(id) != updated or state == "running" or id in self._running]
            rows = [row for i in range(0, len(new), AT_ONCE) for row in session.scalars(select(JobRow).where(JobRow.id.in_(new[i : i + AT_ONCE])))]
        rows.sort(key=lambda row: row.updated)
        self._running = {row.id for row in rows if row.state == "running"}  # their end is seen whatever its stamp
        for row in rows:
            self._events(row)
            if self._seen.get(row.id) != row.updated:
                self._seen[row.id] = row.updated
                self._hub.publish(row.id, row=self._record(row).model_dump(mode="json"))
        self._seen = {id: seen for id, seen in self._seen.items() if seen > since - OVERLAP_SECONDS}

    def _events(self, row: JobRow) -> None:
        try:
            folder = JobFolder.of(self._layout.jobs, row.id)
        except NotFound:
            return
        # What was said before this process looked is in the job's folder; pages read it from there
        start = self._offsets.get(row.id, 0 if row.created > self._begun else row.offset)
        events, self._offsets[row.id] = folder.read(start)
        for event in events:
            self._hub.publish(row.id, event=event.model_dump(mode="json"))
