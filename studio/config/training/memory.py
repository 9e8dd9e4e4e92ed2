"""What a run may take of the machine."""

from typing import ClassVar, Literal

from pydantic import Field

from studio.config.settings import Settings

BaseFormat = Literal["auto", "full", "int8", "fp8", "nf4"]


class Memory(Settings):
    TITLE: ClassVar[str] = "Memory and devices"

    gradient_checkpointing: bool | None = Field(default=None, description="Recompute activations to save memory; empty turns it on for full-size bases")
    base_format: BaseFormat = Field(
        default="auto", description="Bits of the frozen base: int8 and fp8 halve its memory, nf4 takes a quarter and rounds more; auto is full"
    )
    processes: int = Field(default=1, ge=1, le=64, description="Processes that share every batch, each with a GPU of its own; at most batch_size")
