"""The tables. Portable SQL only: SQLite by default, PostgreSQL by URL. Times are Unix seconds."""

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Double, Index, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Table(DeclarativeBase):
    type_annotation_map: ClassVar = {float: Double}  # a time in seconds needs more digits than a 4-byte float has

    def values(self) -> dict[str, Any]:
        """Every column by name."""
        return {column.key: getattr(self, column.key) for column in self.__mapper__.column_attrs}


class JobRow(Table):
    """A job; its folder is the truth, this is the index of it."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_state_queue", "state", "priority", "queued"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(String(16))  # see jobs.progress.STATES
    priority: Mapped[int] = mapped_column(Integer, default=0)
    created: Mapped[float]
    queued: Mapped[float]  # place in the line
    started: Mapped[float | None]
    finished: Mapped[float | None]
    updated: Mapped[float] = mapped_column(Double, index=True)
    device: Mapped[str] = mapped_column(String(255), default="")  # all that it has, by commas
    node: Mapped[str] = mapped_column(String(64), default="")  # which of several dispatchers has it, see jobs.queue
    key: Mapped[str | None] = mapped_column(String(100), unique=True, index=True)  # the same one twice is the same job
    segment: Mapped[int] = mapped_column(Integer, default=1)
    offset: Mapped[int] = mapped_column(BigInteger, default=0)  # bytes of events.jsonl that this row has taken in
    step: Mapped[int] = mapped_column(Integer, default=0)
    total: Mapped[int] = mapped_column(Integer, default=0)
    step_seconds: Mapped[float] = mapped_column(Double, default=0.0)
    cancelling: Mapped[float | None]
    message: Mapped[str] = mapped_column(Text, default="")
    remedy: Mapped[str] = mapped_column(Text, default="")
    kept: Mapped[str] = mapped_column(Text, default="")
    base: Mapped[str] = mapped_column(String(300), default="")
    family: Mapped[str] = mapped_column(String(50), default="")
    config: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    settings: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    facts: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    result: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    uses: Mapped[list[str]] = mapped_column(JSON, default=list)


class SetRow(Table):
    """An image set; its pictures and captions are files in sets/<id>."""

    __tablename__ = "image_sets"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    trigger: Mapped[str] = mapped_column(String(200), default="")
    created: Mapped[float]
    updated: Mapped[float]
    pictures: Mapped[int] = mapped_column(Integer, default=0)
    captioned: Mapped[int] = mapped_column(Integer, default=0)
    cover: Mapped[str] = mapped_column(Text, default="")


class AdapterRow(Table):
    """A LoRA file in adapters/<id>/."""

    __tablename__ = "adapters"
    __table_args__ = (Index("ix_adapters_created", "created", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)  # also the file's stem: what <lora:NAME:1> finds
    family: Mapped[str] = mapped_column(String(50), default="")
    kind: Mapped[str] = mapped_column(String(50), default="")
    base: Mapped[str] = mapped_column(String(300), default="")
    trigger: Mapped[str] = mapped_column(String(200), default="")
    rank: Mapped[int] = mapped_column(Integer, default=0)
    alpha: Mapped[float] = mapped_column(Double, default=0.0)
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    autov3: Mapped[str] = mapped_column(String(64), default="")
    created: Mapped[float]
    run: Mapped[str] = mapped_column(String(32), default="")
    preview: Mapped[str] = mapped_column(Text, default="")  # file name beside the adapter
    facts: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)


class ImageRow(Table):
    """A generated picture in images/YYYY-MM-DD/."""

    __tablename__ = "images"
    __table_args__ = (Index("ix_images_created", "created", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job: Mapped[str] = mapped_column(String(32), index=True)
    path: Mapped[str] = mapped_column(Text)  # relative to the data folder
    source: Mapped[str] = mapped_column(Text, default="")  # relative to the job's folder
    width: Mapped[int] = mapped_column(Integer, default=0)
    height: Mapped[int] = mapped_column(Integer, default=0)
    seed: Mapped[int] = mapped_column(BigInteger, default=0)
    prompt: Mapped[str] = mapped_column(Text, default="")
    created: Mapped[float]
    settings: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)


class BaseRow(Table):
    """A base model that was registered or downloaded under a name."""

    __tablename__ = "bases"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    path: Mapped[str] = mapped_column(Text)
    vae: Mapped[str | None] = mapped_column(Text)
    encoders: Mapped[str | None] = mapped_column(Text)
    family: Mapped[str] = mapped_column(String(50), default="")
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    added: Mapped[float]
