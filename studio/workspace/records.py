"""What use cases return: frozen records whose fields are JSON values."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from studio.events import Event


class Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class JobLine(Record):
    """A job as a list shows it: cheap enough for a queue of thousands."""

    id: str
    kind: str
    name: str
    state: str = Field(description="queued, running, paused, finished, failed, cancelled or interrupted")
    priority: int = Field(default=0, description="higher ones run first")
    queued: float = Field(default=0.0, description="place in the line among those of the same priority")
    created: float
    started: float | None = None
    finished: float | None = None
    updated: float
    device: str = ""
    node: str = Field(default="", description="which of several dispatchers has it")
    segment: int = 1
    step: int = 0
    total: int = 0
    step_seconds: float = 0.0
    eta: float | None = Field(default=None, description="seconds left, while it runs and steps are known")
    cancelling: bool = False
    message: str = Field(default="", description="what it does now, or why it ended: one sentence")
    remedy: str = Field(default="", description="the way out")
    kept: str = Field(default="", description="what was not lost")
    base: str = ""
    family: str = ""


class JobRecord(JobLine):
    """A job with all that is known of it."""

    config: dict[str, Any] = {}
    settings: dict[str, Any] = Field(default={}, description="config with every default filled in")
    facts: dict[str, Any] = {}
    result: dict[str, Any] = {}


class EventPage(Record):
    """Events of a job; `after` is where the next page begins."""

    events: tuple[Event, ...]
    after: int


class CheckpointRecord(Record):
    ref: str = Field(description="RUN@STEP, as export takes it")
    step: int
    path: str = Field(description="the adapter file, relative to the job's folder")
    bytes: int
    sha256: str
    created: float
    best: bool = Field(default=False, description="has the lowest held-out loss of its run")


class SweepRecord(Record):
    """Trainings that differ in the values of some settings."""

    id: str = Field(description="that of its first run")
    name: str
    rows: tuple[str, ...] = Field(description="what was swept over, as SETTING=A,B")
    jobs: tuple[str, ...]


class PictureRecord(Record):
    name: str
    width: int
    height: int
    sha256: str
    caption: str


class SetRecord(Record):
    id: str
    name: str
    trigger: str = ""
    builtin: bool = False
    kind: str = ""
    licence: str = ""
    description: str = ""
    created: float = 0.0
    updated: float = 0.0
    pictures: int = 0
    captioned: int = 0
    cover: str = Field(default="", description="name of the first picture")


class SetDetail(SetRecord):
    items: tuple[PictureRecord, ...] = ()


class Outcome(Record):
    """What became of one file of an import."""

    name: str
    stored: str = ""
    code: str = ""
    message: str = ""
    notes: tuple[str, ...] = ()


class ImportRecord(Record):
    set: SetRecord | None
    accepted: tuple[Outcome, ...] = ()
    rejected: tuple[Outcome, ...] = ()
    skipped: tuple[Outcome, ...] = ()


class AdapterRecord(Record):
    id: str
    name: str
    family: str = ""
    kind: str = ""
    base: str = ""
    trigger: str = ""
    rank: int = 0
    alpha: float = 0.0
    bytes: int = 0
    sha256: str = ""
    autov3: str = ""
    created: float = 0.0
    run: str = ""
    preview: bool = False
    accelerator: dict[str, Any] = Field(default={}, description="kind, settings and weight that it is made for, if it makes few steps enough")
    facts: dict[str, Any] = {}


class ImageRecord(Record):
    id: str
    job: str
    width: int
    height: int
    seed: int
    prompt: str
    created: float
    settings: dict[str, Any] = {}


class InputRecord(Record):
    """A picture that drawings can start from, by the name that init_image and mask take."""

    name: str
    width: int
    height: int


class RecallRecord(Record):
    """What a picture was drawn with, as it can be drawn here."""

    settings: dict[str, Any]
    troubles: tuple[str, ...] = Field(default=(), description="what is missing or another one here, a sentence each")
    changed: tuple[str, ...] = Field(default=(), description="LoRAs that are missing, or other files than the picture was drawn with")


class BaseRecord(Record):
    name: str
    title: str = ""
    family: str = ""
    family_title: str = ""
    kind: str = ""
    path: str = ""
    licence: str = ""
    bytes: int = 0
    builtin: bool = False
    blocks: tuple[str, ...] = Field(default=(), description="block groups of the denoiser, as rows of a stack name them")
    habits: dict[str, Any] = {}
    problem: str = Field(default="", description="why it cannot be used now, if it cannot")


class DeviceRecord(Record):
    name: str
    title: str
    memory: int = 0
    worker: str = Field(description="none, idle, busy or silent")
    base: str = Field(default="", description="base model it keeps loaded")


class Status(Record):
    version: str
    boot: str
    data: str
    devices: tuple[DeviceRecord, ...]
    backend: str = Field(description="where jobs run: this machine, or a Ray cluster")
    running: tuple[JobRecord, ...]
    queued: int
    disk_free: int
    disk_total: int
    dispatching: bool = Field(description="whether this process hands out jobs; another one may")
    trouble: str = Field(default="", description="why the queue waits, if it does")
