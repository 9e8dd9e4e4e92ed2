"""How long a run is and how much it sees at once."""

from typing import ClassVar

from pydantic import Field

from studio.config.settings import Settings


class Length(Settings):
    TITLE: ClassVar[str] = "Length"

    steps: int | None = Field(default=None, ge=1, le=1_000_000, description="Optimizer steps; empty takes the base's habit, or follows from epochs")
    epochs: int | None = Field(default=None, ge=1, le=100_000, description="Passes over the pictures, instead of steps")
    repeats: int = Field(default=1, ge=1, le=1000, description="How often each picture counts within one epoch")
    batch_size: int | None = Field(default=None, ge=1, le=512, description="Pictures in one step")
    gradient_accumulation: int = Field(default=1, ge=1, le=256, description="Batches summed up before one optimizer step")
    resolution: int | None = Field(default=None, ge=64, le=4096, description="Side in pixels whose square is the area to train at")
