"""Jobs: submit, follow, steer, go on with. Submitting checks everything that can be known; the rest is the worker's."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from sqlalchemy import CursorResult, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from studio.config import GenerateConfig, TrainConfig, build
from studio.errors import InputError, NotFound, RunError, StudioError
from studio.events import TERMINAL, CancelledEvent, Event, Failed, Validation, Warned
from studio.jobs import stretch
from studio.jobs.folder import EventWriter, JobFolder, Manifest
from studio.jobs.progress import ENDED
from studio.jobs.reconcile import row_of
from studio.jobs.spec import TOOLS, CaptionConfig, Dtype, EvaluateConfig, ExportConfig, Format
from studio.library import trash
from studio.library.database import Database
from studio.library.ids import go_on_after
from studio.library.layout import Layout, inside
from studio.library.models import JobRow
from studio.workspace import line, plans
from studio.workspace.bases import Bases
from studio.workspace.guards import not_in_use
from studio.workspace.hub import Hub
from studio.workspace.inputs import Inputs
from studio.workspace.library import Library
from studio.workspace.live import LIVE, pinned
from studio.workspace.records import CheckpointRecord, EventPage, JobLine, JobRecord
from studio.workspace.sets import Sets

FOLLOW_SECONDS = 0.1
PAGE = 100


class Jobs:
    """Use cases around jobs."""

    def __init__(self, db: Database, layout: Layout, sets: Sets, bases: Bases, library: Library, inputs: Inputs) -> None:
        self._db = db
        self._layout = layout
        self._sets = sets
        self._bases = bases
        self._library = library
        self._inputs = inputs
        self.on_change: Callable[[], None] = lambda: None  # the queue's loop is told that there is something to do
        self.on_follow: Callable[[], None] = lambda: None
        self.trouble: Callable[[], str] = lambda: ""
        self.hub: Hub | None = None
        self.tool: Callable[[str, Mapping[str, Any]], JobRecord] | None = None  # submits an adapter tool by its kind

    def train(self, config: TrainConfig, key: str = "") -> JobRecord:
        """Put a training run into the queue. Raises InputError if it cannot work; then nothing was made. `key`: see `submit`."""
        return self.submit(plans.train(config, self._sets, self._bases, self.source), key)

    def generate(self, config: GenerateConfig, key: str = "") -> JobRecord:
        """Put a generate job into the queue. It waits while a training has the device, unless that is paused; `sample_now` does not."""
        return self.submit(plans.generate(config, self._bases, self._library, self._inputs, self.stacked), key)

    def export(self, source: str, output: str | Path | None = None, format: Format = "kohya", dtype: Dtype = "fp16", **more: Any) -> JobRecord:
        """Write a run, RUN@STEP, library adapter or file in a format for others, proven; without `output` it joins the library.

        more: thumbnail, tags and side_files of ExportConfig.
        """
        config = build(ExportConfig, {"source": source, "output": str(output) if output else None, "format": format, "dtype": dtype, **more})
        return self.submit(plans.export(config, self.source(source)))

    def go_on(self) -> None:
        """Let what is made from now on sort behind what is there, should the clock have been set back."""
        with self._db.read() as session:
            go_on_after(session.scalar(select(func.max(JobRow.id))) or "")

    def list(self, kind: str | None = None, state: str | None = None, before: str | None = None, limit: int = PAGE) -> list[JobRecord]:
        """Newest first. `before`: the last id of the page before."""
        statement = select(JobRow).order_by(JobRow.id.desc()).limit(limit)
        for column, value in ((JobRow.kind, kind), (JobRow.state, state)):
            statement = statement.where(column == value) if value else statement
        if before:
            statement = statement.where(JobRow.id < before)
        with self._db.read() as session:
            return [record(row) for row in session.scalars(statement)]

    def queue(self) -> "list[JobLine]":
        """Running jobs, then queued ones in the order they will run."""
        with self._db.read() as session:
            return line.waiting(session)

    def show(self, ref: str) -> JobRecord:
        """By id, or the newest of that name; an export is called like its run, so runs come first."""
        with self._db.read() as session:
            return record(_row(session, ref))

    def cancel(self, ref: str) -> JobRecord:
        """Stop a job. A queued one is gone from the queue at once; a running one stops at its next step, or loses its worker after 30 seconds."""
        job = self.show(ref)
        said = {"state": "cancelled", "message": "cancelled before it began", "remedy": "", "finished": time.time()}
        if self._change(job.id, "queued", **said) or self._change(job.id, "paused", **{**said, "message": "cancelled"}):
            writer = EventWriter(self._folder(job.id).events_file)
            writer.append(CancelledEvent(step=job.step, kept=job.kept))
            writer.close()
        elif self.show(job.id).state == "running":
            self._folder(job.id).request("cancel")
            if not job.cancelling:
                self._change(job.id, "running", cancelling=time.time(), message="stopping")
        return self.show(job.id)

    def sample_now(self, ref: str) -> JobRecord:
        """Ask a running training for preview pictures."""
        return self._request(ref, "sample")

    def pin(self, ref: str) -> JobRecord:
        """Ask a running training for a checkpoint at its next step."""
        return self._request(ref, "keep")

    def finish_now(self, ref: str) -> JobRecord:
        """Ask a running training to end here and export what it has."""
        return self._request(ref, "finish")

    def move(self, ref: str, place: int) -> JobRecord:
        """Put a queued job at that place of the queue, 0 being the next to run."""
        job = self.show(ref)
        with self._db.write() as session:
            line.move(session, job.id, place)
        self.on_change()
        return self.show(job.id)

    def prioritise(self, ref: str, priority: int) -> JobRecord:
        """Let a queued or paused job go before all of a lower priority; 0 is the usual one."""
        job = self.show(ref)
        if not any(self._change(job.id, state, priority=priority) for state in ("queued", "paused")):
            raise RunError(f"job {job.name!r} is {self.show(job.id).state}; only waiting jobs have a priority")
        return self.show(job.id)

    def pause(self, ref: str) -> JobRecord:
        """Hold a queued job back, or stop a running training at its next step, with a checkpoint, so that its device is free. `resume` goes on."""
        job = self.show(ref)
        if self._change(job.id, "queued", state="paused", message="held back", remedy="resume lets it run"):
            return self.show(job.id)
        job = self.show(job.id)
        if job.state == "paused":
            return job
        if job.state != "running" or job.kind != "train":
            raise RunError(f"the {job.kind} job {job.name!r} is {job.state}; only queued jobs and running trainings can pause")
        self._folder(job.id).request("pause")
        self._change(job.id, "running", message="pausing")
        return self.show(job.id)

    def resume(self, ref: str) -> JobRecord:
        """Go on with a run that was paused, interrupted, cancelled or failed, from its last checkpoint."""
        job = self.show(ref)
        if job.state not in ("paused", "interrupted", "cancelled", "failed"):
            raise RunError(f"run {job.name!r} is {job.state}; to train it further, extend it")
        if job.state == "paused" and self._folder(job.id).claim() is None:  # nobody has begun it
            self._change(job.id, "paused", state="queued", message="", remedy="")
            return self.show(job.id)
        return self._go_on(job, "resume", {})

    def extend(self, ref: str, steps: int) -> JobRecord:
        """Train a finished run for so many more steps; the longer one joins the library beside the first."""
        job = self.show(ref)
        if job.state != "finished" or job.kind != "train":
            raise RunError(f"job {job.name!r} is {job.state}; only finished training runs can be extended")
        if steps < 1:
            raise InputError(f"extend by {steps} steps: give at least 1")
        return self._go_on(job, "extend", {"steps": job.step + steps, "epochs": None})

    def retry(self, ref: str) -> JobRecord:
        """The same settings, seed included, as a new job from the start."""
        return self.duplicate(ref, {})

    def duplicate(self, ref: str, changes: Mapping[str, Any], key: str = "") -> JobRecord:
        """A new job like that one, seed included, but for these settings. Raises SettingsError for a setting that its kind does not have."""
        manifest = self._folder(self.show(ref).id).manifest()
        asked = {**manifest.config, "seed": manifest.settings["seed"]} if "seed" in manifest.settings else dict(manifest.config)
        asked |= {"steps": None} if changes.get("epochs") and "steps" not in changes else {}
        asked |= {"epochs": None} if changes.get("steps") and "epochs" not in changes else {}
        asked |= changes
        if manifest.kind == "train":
            return self.train(build(TrainConfig, asked), key)
        if manifest.kind == "generate":
            return self.generate(build(GenerateConfig, asked), key)
        if manifest.kind == "evaluate":
            return self.evaluate(**asked)
        if manifest.kind == "caption":
            return self.submit(plans.caption(build(CaptionConfig, asked), self._sets), key)
        if manifest.kind in TOOLS and self.tool is not None:
            return self.tool(manifest.kind, asked)
        return self.export(**asked)

    def fork(self, ref: str, changes: Mapping[str, Any], key: str = "") -> JobRecord:
        """A new run from the weights of a run, or of RUN@STEP, with its settings but for these; it says what differs."""
        source = self.source(ref)
        if not source.run:
            raise InputError(f"{ref!r} is no training run; name one, or RUN@STEP for a checkpoint of it")
        name = {} if "name" in changes else {"name": f"{self.show(source.run).name}-fork"}
        return self.duplicate(source.run, {**name, **changes, "start_from": f"{source.run}@{source.step}"}, key)

    def evaluate(self, run: str, images: str | None = None) -> JobRecord:
        """Measure every checkpoint of a run by the pictures it held out, or by an image set it has not seen."""
        job = self.show(run)
        if job.kind != "train" or not self._folder(job.id).checkpoints():
            raise InputError(f"job {job.name!r} has no checkpoints to evaluate; name a training run that has")
        config = build(EvaluateConfig, {"run": job.id, "images": images})
        return self.submit(plans.evaluate(config, self._folder(job.id).manifest(), self._sets))

    def validations(self, ref: str) -> "list[Validation]":
        """What a job found on held-out pictures, oldest first."""
        return self._folder(self.show(ref).id).validations()

    def report(self, ref: str) -> dict[str, Any]:
        """The proof of the last file that a job wrote. Raises NotFound if it wrote none."""
        job = self.show(ref)
        exports = self._folder(job.id).exports()
        if not exports:
            raise NotFound(f"job {job.name!r} has written no LoRA file")
        return exports[-1].report

    def remove(self, ref: str) -> str:
        """Delete a job that has ended, with its checkpoints; what it made stays in library and gallery. The token restores it."""
        with self._db.read() as session:
            row = _row(session, ref)
            not_in_use(session, f"job:{row.id}", f"run {row.name!r}")
        if row.state not in ENDED:
            raise RunError(f"job {row.name!r} is {row.state}; cancel it first")
        token = trash.throw(self._db, self._layout, "job", row, self._layout.jobs / row.id)
        if self.hub is not None:
            self.hub.publish(row.id, row=None)
        self.on_change()
        return token

    def restore(self, token: str) -> JobRecord:
        """Undo `remove`."""
        # Its key may be taken by now; that it changed lets every page know of it
        id = trash.restore(self._db, self._layout, token, "job", lambda _, values: values.update(key=None, updated=time.time()))
        self.on_change()
        return self.show(id)

    def events(self, ref: str, after: int = 0) -> EventPage:
        """What a job said from byte `after` of its events on."""
        events, end = self._folder(self.show(ref).id).read(after)
        return EventPage(events=tuple(events), after=end)

    def follow(self, ref: str) -> Iterator[Event]:
        """Everything the current stretch of a job says, until its end. Hosts the queue if no studio does."""
        self.on_follow()
        id = self.show(ref).id
        folder = self._folder(id)
        after, told, trouble = folder.manifest().segment.offset, False, ""
        while True:
            job = self.show(id)  # before reading: what was said before it ended is read below
            events, after = folder.read(after)
            yield from events
            if trouble != self.trouble():
                trouble = self.trouble()
                yield Warned(message=f"the queue waits: {trouble}" if trouble else "the queue goes on")
            told = told or any(event.kind in TERMINAL for event in events)
            if job.state in ENDED:
                if not told and job.state in ("interrupted", "failed"):
                    yield Failed(message=job.message, remedy=job.remedy, kept=job.kept, error="RunError")
                return
            time.sleep(FOLLOW_SECONDS)

    def checkpoints(self, ref: str) -> "list[CheckpointRecord]":
        """Checkpoints of a run, oldest first; each can be exported by its ref."""
        id = self.show(ref).id
        best = self._best(id)
        return [
            CheckpointRecord(ref=f"{id}@{c.step}", step=c.step, path=c.adapter, bytes=c.bytes, sha256=c.sha256, created=c.time, best=c.step == best)
            for c in self._folder(id).checkpoints()
        ]

    def _best(self, id: str) -> int | None:
        """The step with the lowest held-out loss, where the settings say that it is to be kept."""
        folder = self._folder(id)
        steps = [look.step for look in folder.validations() if look.best] if folder.manifest().settings.get("keep_best") else []
        return steps[-1] if steps else None

    def file(self, ref: str, relative: str) -> Path:
        """A file of the job's folder, for example a sample or the exported LoRA."""
        return inside(self._layout.jobs / self.show(ref).id, relative)

    def submit(self, manifest: Manifest, key: str = "") -> JobRecord:
        """Put a job that was checked into the queue. With a `key` that a job has already, that one is meant: a repeated request makes no second."""
        with self._db.read() as session:
            last = manifest.segment.model_copy(update={"submitted": line.end(session, manifest.segment.submitted)})
        manifest = manifest.model_copy(update={"key": key, "segments": [*manifest.segments[:-1], last]})
        if known := self._keyed(manifest):
            return known
        folder = JobFolder.create(self._layout.jobs, manifest)  # first: a row without a folder would be a lie, the other way round is mended
        try:
            with self._db.write() as session:
                row = row_of(manifest)  # stamped once the database is free
                session.add(row)
        except IntegrityError:
            if (known := self._keyed(manifest)) and known.id != manifest.id:
                shutil.rmtree(folder.path)  # the same request was a moment faster on another way
                return known
            return self.show(manifest.id)  # whoever began to dispatch at this moment found the folder first
        except StudioError as error:
            shutil.rmtree(folder.path)  # who is told that it was refused must not find it in the queue later
            self._db.forget(JobRow, manifest.id, error)
            raise
        self.on_change()
        return record(row)

    def _keyed(self, manifest: Manifest) -> JobRecord | None:
        """The job that has this key. Raises RunError if that one is another job."""
        if not manifest.key:
            return None
        with self._db.read() as session:
            row = session.scalar(select(JobRow).where(JobRow.key == manifest.key))
        if row is not None and (row.kind, row.config) != (manifest.kind, manifest.config):
            raise RunError(f"key {manifest.key!r} belongs to the {row.kind} job {row.name!r}; send another key for another job")
        return record(row) if row else None

    def _go_on(self, job: JobRecord, why: Literal["resume", "extend"], settings: dict[str, Any]) -> JobRecord:
        folder = self._folder(job.id)
        if job.kind != "train" or not (folder.checkpoints() or job.state == "paused"):
            raise RunError(f"job {job.name!r} has no checkpoint to go on from; retry starts it again")
        stretch.begin(self._db, folder, job.state, why, settings)
        self.on_change()
        return self.show(job.id)

    def _training(self, ref: str) -> JobRecord:
        job = self.show(ref)
        if job.state != "running" or job.kind != "train":
            raise RunError(f"job {job.name!r} is {job.state}; that needs a running training")
        return job

    def _request(self, ref: str, what: Literal["sample", "keep", "finish"]) -> JobRecord:
        job = self._training(ref)
        self._folder(job.id).request(what)
        return job

    def stacked(self, ref: str) -> plans.Source:
        """What is behind a run in a stack: as `source`, and RUN@live is the run as it is now, kept as a checkpoint."""
        name = ref.removesuffix(LIVE)
        if name == ref:
            return self.source(ref)
        job = self.show(name)
        if job.state != "running" or job.kind != "train":
            return self.source(name)
        return self.source(f"{name}@{self.pinned(job.id)}")

    def pinned(self, ref: str) -> int:
        """As `pin`, and the step that was kept. Raises RunError if the run ends before it."""
        job = self._training(ref)
        return pinned(self._folder(job.id), lambda: self.show(job.id).state == "running")

    def source(self, ref: str) -> plans.Source:
        """What is behind a run, RUN@STEP, library adapter or file."""
        name, at, step = ref.rpartition("@")
        try:
            job = self.show(name if at and step.isdigit() else ref)
        except NotFound:
            path, id = self._library.locate(ref)
            return plans.Source(path, path.stem, adapter=id)
        if job.kind != "train":  # what it made is called like it
            with contextlib.suppress(NotFound):
                path, id = self._library.locate(ref)
                return plans.Source(path, path.stem, adapter=id)
            raise InputError(f"job {job.name!r} is a {job.kind} job; name a training run, a LoRA of the library or a file")
        found = {c.step: c for c in self._folder(job.id).checkpoints()}
        if not found:
            raise InputError(f"run {job.name!r} has no checkpoint yet")
        best = self._best(job.id) if job.state == "finished" else None
        wanted = int(step) if at and step.isdigit() else best if best in found else max(found)
        if wanted not in found:
            raise NotFound(f"run {job.name!r} has no checkpoint of step {wanted}; there are {', '.join(map(str, found))}")
        path = self._layout.jobs / job.id / found[wanted].adapter
        return plans.Source(path, f"{job.name}-{wanted}" if at else job.name, job.id, wanted)

    def _folder(self, id: str) -> JobFolder:
        return JobFolder.of(self._layout.jobs, id)

    def _change(self, id: str, expected: str, **values: Any) -> bool:
        with self._db.write() as session:
            statement = update(JobRow).where(JobRow.id == id, JobRow.state == expected).values(**values, updated=time.time())
            changed = cast(CursorResult[Any], session.execute(statement)).rowcount == 1
        self.on_change()
        return changed


def record(row: JobRow) -> JobRecord:
    values = row.values()
    return JobRecord(**{**{k: values[k] for k in JobRecord.model_fields if k in values}, "cancelling": row.cancelling is not None, "eta": line.eta(row)})


def _row(session: Session, ref: str) -> JobRow:
    row = session.get(JobRow, ref) or session.scalar(select(JobRow).where(JobRow.name == ref).order_by(JobRow.kind != "train", JobRow.id.desc()).limit(1))
    if row is None:
        raise NotFound(f"no job {ref!r}; `jobs list` shows all")
    return row
