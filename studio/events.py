"""What a job says while it runs: one JSON object a line, appended to `events.jsonl` in the job's folder.

Engines yield these, the worker writes them, every front end reads them. Paths are relative to the job's folder.
"""

import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


def _now() -> float:
    return time.time()


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")
    time: float = Field(default_factory=_now, description="Unix time in seconds")


class Loading(_Event):
    """Work before (or after) the steps: `phase` is words for people, done/total its progress."""

    kind: Literal["loading"] = "loading"
    phase: str
    done: int = 0
    total: int = 0


class Warned(_Event):
    """Something the user should know; the job goes on."""

    kind: Literal["warned"] = "warned"
    message: str


class Started(_Event):
    """The first step is about to run."""

    kind: Literal["started"] = "started"
    step: int = 0
    total: int
    settings: dict[str, Any] = Field(default_factory=dict, description="every setting as resolved")
    facts: dict[str, Any] = Field(default_factory=dict, description="images, modules, parameters, device, scale, ...")


class Step(_Event):
    kind: Literal["step"] = "step"
    step: int
    total: int
    loss: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    seconds: float = Field(default=0.0, description="wall seconds of this step")


class Sample(_Event):
    """A preview made by a training run."""

    kind: Literal["sample"] = "sample"
    step: int
    path: str
    prompt: str
    seed: int


class Image(_Event):
    """A finished picture of a generate job."""

    kind: Literal["image"] = "image"
    path: str
    index: int
    seed: int
    settings: dict[str, Any] = Field(default_factory=dict)


class Sheet(_Event):
    """All pictures of a grid in one file, with labels."""

    kind: Literal["sheet"] = "sheet"
    path: str


class Preview(_Event):
    """What the picture at hand looks like so far, roughly; only the last few are still there."""

    kind: Literal["preview"] = "preview"
    path: str
    step: int


class Validation(_Event):
    """The loss on pictures that are never trained on, with the same noise each time."""

    kind: Literal["validation"] = "validation"
    step: int
    loss: float = Field(description="mean over pictures and noise levels")
    low: float | None = Field(default=None, description="where the mean over all such pictures lies with 95 % confidence; none with one picture")
    high: float | None = None
    by_level: list[float] = Field(default=[], description="mean over pictures in equal shares of the run's noise levels, least noise first")
    by_picture: dict[str, float] = Field(default={}, description="mean over noise levels")
    best: bool = Field(default=False, description="the lowest of the run so far")
    stale: int = Field(default=0, description="looks since the lowest")


class Checkpoint(_Event):
    """A checkpoint is complete on disk; `path` is its folder, `adapter` the file in it."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    path: str
    adapter: str
    sha256: str
    bytes: int


class Exported(_Event):
    """A verified adapter file: `path` absolute if the user named it, else relative to the job."""

    kind: Literal["exported"] = "exported"
    path: str
    report: dict[str, Any] = Field(default_factory=dict)


class Finished(_Event):
    kind: Literal["finished"] = "finished"
    step: int = 0
    seconds: float = 0.0
    result: dict[str, Any] = Field(default_factory=dict)


class CancelledEvent(_Event):
    kind: Literal["cancelled"] = "cancelled"
    step: int = 0
    kept: str = Field(default="", description="one sentence: what is still there")


class PausedEvent(_Event):
    """It stopped at a step boundary because somebody asked; `resume` goes on from there."""

    kind: Literal["paused"] = "paused"
    step: int = 0
    kept: str = Field(default="", description="one sentence: what is still there")


class Failed(_Event):
    """`message` is one plain sentence; `remedy` the way out; `kept` what was not lost."""

    kind: Literal["failed"] = "failed"
    message: str
    remedy: str = ""
    kept: str = ""
    error: str = Field(default="StudioError", description="class name from studio.errors, for the exit code")


Event = (
    Loading | Warned | Started | Step | Sample | Image | Sheet | Preview | Validation | Checkpoint | Exported | Finished | CancelledEvent | PausedEvent | Failed
)
TERMINAL = ("finished", "failed", "cancelled", "paused")

_adapter: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def to_line(event: Event) -> str:
    """The event as one JSON line, newline included."""
    return event.model_dump_json() + "\n"


def from_line(line: str | bytes) -> Event:
    """The event of a line that `to_line` wrote. Raises pydantic.ValidationError on anything else."""
    return _adapter.validate_json(line)
