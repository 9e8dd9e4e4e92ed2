"""What a run may take of the machine."""

from typing import ClassVar

from pydantic import Field

from studio.config.settings import Settings


class Memory(Settings):
    TITLE: ClassVar[str] = "Memory and devices"

    gradient_checkpointing: bool | None = Field(default=None, description="Recompute activations to save memory; empty turns it on for full-size bases")
    processes: int = Field(default=1, ge=1, le=64, description="Processes that share every batch, each with a GPU of its own; at most batch_size")
