"""A job's folder: what is to be done (job.json), what was said (events.jsonl), what is asked of it meanwhile (requests/).

    job.json  events.jsonl  log.txt  claim.json  requests/  checkpoints/  samples/  images/  output/

The folder is the truth about a job. It can be read without a database, and a worker needs nothing else.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.errors import NotFound
from studio.events import TERMINAL, Checkpoint, Event, Exported, Validation, Warned, from_line, to_line
from studio.killpoints import reached
from studio.library.files import or_nothing, write_whole
from studio.library.layout import checked_id

Request = Literal["cancel", "sample", "keep", "finish", "pause"]
_ONCE = ("sample", "keep")
_DURABLE = (*TERMINAL, "checkpoint", "exported", "image")


class Segment(BaseModel):
    """One stretch of work in the same folder: the first, and one more for each retry, resume and extension."""

    model_config = ConfigDict(frozen=True)

    number: int = 1
    offset: int = Field(default=0, description="byte of events.jsonl at which it begins")
    submitted: float = Field(default_factory=time.time)
    why: Literal["new", "retry", "resume", "extend"] = "new"


class Manifest(BaseModel):
    """job.json. `config` is what the person asked for, `settings` the same with every default filled in."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: str
    name: str
    created: float = Field(default_factory=time.time)
    priority: int = 0
    key: str = Field(default="", description="given by who submits: the same one twice is the same job")
    config: dict[str, Any]
    settings: dict[str, Any]
    base: dict[str, Any] = Field(default_factory=dict, description="the base model as it was found, see families.base.Base")
    paths: dict[str, str] = Field(default_factory=dict, description="files and folders behind the names in settings")
    uses: list[str] = Field(default_factory=list, description="what must not be deleted meanwhile: set:ID, adapter:ID")
    segments: list[Segment] = Field(default_factory=lambda: [Segment()])

    @property
    def segment(self) -> Segment:
        return self.segments[-1]


class Claim(BaseModel):
    """The worker that took the current segment. A pid alone may belong to somebody else by now; its start time tells."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started: float
    segment: int
    device: str = Field(description="its device, or all that it has for this job by commas")
    node: str = ""
    cluster: str = Field(default="", description="address of the cluster that it belongs to: its pid says nothing elsewhere")
    time: float = Field(default_factory=time.time)


class JobFolder:
    """Reading and writing one job's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, jobs: Path, id: str) -> "JobFolder":
        folder = cls(jobs / checked_id(id, "job"))
        if not (folder.path / "job.json").is_file():
            raise NotFound(f"no job {id!r}; `jobs list` shows all")
        return folder

    @classmethod
    def create(cls, jobs: Path, manifest: Manifest) -> "JobFolder":
        """A new folder, complete from the moment it can be seen. Raises Unavailable if the disk is full."""
        part = jobs / f".{manifest.id}.part"
        with or_nothing(part, room=jobs):
            (part / "requests").mkdir(parents=True)
            write_whole(part / "job.json", manifest.model_dump_json(indent=1).encode())
            (part / "events.jsonl").touch()
            os.replace(part, jobs / manifest.id)
        return cls(jobs / manifest.id)

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    def manifest(self) -> Manifest:
        return Manifest.model_validate_json((self.path / "job.json").read_bytes())

    def begin_segment(self, why: Literal["retry", "resume", "extend"], settings: Mapping[str, Any] | None = None) -> Manifest:
        """Make the job ready to be run once more, after what it has said so far."""
        manifest = self.manifest()
        for request in (self.path / "requests").iterdir():
            request.unlink()
        size = _whole_length(self.events_file)
        segment = Segment(number=manifest.segment.number + 1, offset=size, why=why)
        settings = {**manifest.settings, **(settings or {})}
        manifest = manifest.model_copy(update={"segments": [*manifest.segments, segment], "settings": settings})
        write_whole(self.path / "job.json", manifest.model_dump_json(indent=1).encode())
        return manifest

    def claim(self) -> Claim | None:
        """Who works, or worked, on the current segment."""
        try:
            claim = Claim.model_validate_json((self.path / "claim.json").read_bytes())
        except FileNotFoundError:
            return None
        return claim if claim.segment == self.manifest().segment.number else None

    def write_claim(self, claim: Claim) -> None:
        write_whole(self.path / "claim.json", claim.model_dump_json().encode())

    def request(self, what: Request) -> None:
        (self.path / "requests" / what).touch()

    def read(self, after: int = 0, until: int | None = None) -> tuple[list[Event], int]:
        """Events from byte `after` on, and the byte to go on from. A line that is still being written waits."""
        try:
            with open(self.events_file, "rb") as file:
                file.seek(after)
                content = file.read() if until is None else file.read(max(0, until - after))
        except FileNotFoundError:
            return [], after
        whole = content[: content.rfind(b"\n") + 1]
        return [_event(line) for line in whole.splitlines() if line.strip()], after + len(whole)

    def checkpoints(self) -> list[Checkpoint]:
        """Checkpoints whose file is still there, oldest first; one a step."""
        return [event for event in self.promised() if (self.path / event.adapter).is_file()]

    def promised(self) -> list[Checkpoint]:
        """Checkpoints that were told of, oldest first; one a step. A run that goes on passes over the damaged ones and says so."""
        found = {event.step: event for event in self.read()[0] if isinstance(event, Checkpoint)}
        return [found[step] for step in sorted(found)]

    def validations(self) -> list[Validation]:
        """Looks at held-out pictures, oldest first; one a step."""
        found = {event.step: event for event in self.read()[0] if isinstance(event, Validation)}
        return [found[step] for step in sorted(found)]

    def exports(self) -> list[Exported]:
        """Files that were written, oldest first, without the smaller ones that a run offers beside its own."""
        own = self.manifest().kind == "probe"
        return [event for event in self.read()[0] if isinstance(event, Exported) and (own or "probe" not in event.report)]


def _event(line: bytes) -> Event:
    try:
        return from_line(line)
    except ValidationError:
        return Warned(message="a line of events.jsonl is of another version and cannot be shown")


class EventWriter:
    """Appends events; what somebody may rely on after a power cut is on the disk when `append` returns."""

    def __init__(self, path: Path) -> None:
        length = _whole_length(path)
        self._file = open(path, "r+b", buffering=0)  # noqa: SIM115  closed by close(); a buffer would write a failed line again, later and elsewhere
        self._file.truncate(length)  # a line cut by a crash was never read by anybody
        self._end = self._file.seek(length)

    def append(self, event: Event) -> None:
        line = to_line(event).encode()
        self._file.seek(self._end)  # over what is left of a line that failed
        written = self._file.write(line)
        while written < len(line):
            written += self._file.write(line[written:])
        self._end += written
        reached(f"event-{event.kind}")
        if event.kind in _DURABLE:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _whole_length(path: Path) -> int:
    """Bytes up to the end of the last complete line."""
    path.touch()
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        while size:
            start = max(0, size - 65536)
            file.seek(start)
            end = file.read(size - start).rfind(b"\n")
            if end >= 0:
                return start + end + 1
            size = start
    return 0


class FolderRequests:
    """What was asked of a running job, as engines read it at step boundaries."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "requests"
        self.leave = False  # the process was told to end: asked of every job it runs, and of no other process

    def pending(self) -> set[str]:
        """Names of open requests; `sample` and `keep` are asked once and gone, the others stay."""
        names = set(os.listdir(self._folder)) | ({"leave"} if self.leaving() else set())
        for once in names.intersection(_ONCE):
            (self._folder / once).unlink(missing_ok=True)
        return names

    def cancelled(self) -> bool:
        return (self._folder / "cancel").exists()

    def paused(self) -> bool:
        return (self._folder / "pause").exists()

    def leaving(self) -> bool:
        """Whether the job is to stop at a step boundary with a checkpoint: its process ends, or it pauses."""
        return self.leave or self.paused()
