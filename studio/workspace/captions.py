"""Captions by a model: asked for as a job, and taken back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studio.config import build
from studio.errors import RunError
from studio.jobs import captioning
from studio.jobs.folder import JobFolder
from studio.jobs.progress import ENDED
from studio.jobs.spec import CaptionConfig
from studio.library.layout import Layout
from studio.workspace import plans
from studio.workspace.jobs import Jobs
from studio.workspace.records import JobRecord
from studio.workspace.sets import Sets


class Captions:
    """Use cases around captions that a model writes."""

    def __init__(self, layout: Layout, sets: Sets, jobs: Jobs) -> None:
        self._layout = layout
        self._sets = sets
        self._jobs = jobs

    def make(self, asked: Mapping[str, Any], key: str = "") -> JobRecord:
        """Let a model caption an image set of the studio; `undo` takes it back. asked: settings of CaptionConfig."""
        return self._jobs.submit(plans.caption(build(CaptionConfig, asked), self._sets), key)

    def undo(self, ref: str) -> int:
        """Put back the captions that a caption job changed, but for those that somebody changed since; how many were put back."""
        job = self._jobs.show(ref)
        if job.kind != "caption" or job.state not in ENDED:
            raise RunError(f"the {job.kind} job {job.name!r} is {job.state}; name a caption job that has ended")
        folder = JobFolder.of(self._layout.jobs, job.id)
        paths = folder.manifest().paths
        self._sets.show(paths["set"])  # it may have been removed
        back = captioning.undo(folder.path, Path(paths["images"]))
        self._sets.count(paths["set"])
        return back
