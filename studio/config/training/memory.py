"""What a run may take of the machine."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from studio.config.settings import Settings

BaseFormat = Literal["auto", "full", "int8", "fp8", "nf4"]


class Memory(Settings):
    TITLE: ClassVar[str] = "Memory and devices"

    gradient_checkpointing: bool | None = Field(default=None, description="Recompute activations to save memory; empty: as far as memory asks for it")
    base_format: BaseFormat = Field(
        default="auto", description="Bits of the frozen base: int8 and fp8 halve its memory, nf4 takes a quarter and rounds more; auto is full where that fits"
    )
    block_offload: float | None = Field(
        default=None, ge=0, le=1, description="Share of the base's blocks that wait in main memory and come when they are needed; empty: as memory asks for it"
    )
    memory_budget: float | None = Field(
        default=None, ge=1, le=1000, description="GPU memory the run may take, in GB (thousand million bytes); empty: what is free on the card"
    )
    speed: Literal["auto", "eager", "graph", "compile"] = Field(
        default="auto", description="graph records the whole step once and replays it, compile also compiles its blocks (NVIDIA only); auto chooses"
    )
    fp8_products: bool = Field(
        default=False, description="Multiply with the frozen base in 8 bits: faster on RTX 40, H100 and newer, rounds more; the exact base rests in main memory"
    )
    processes: int = Field(default=1, ge=1, le=64, description="Processes that share every batch, each with a GPU of its own; at most batch_size")

    @model_validator(mode="after")
    def _rounded_or_waiting(self) -> Self:
        if self.fp8_products and self.block_offload:
            raise ValueError("fp8_products and block_offload are both given: products in 8 bits need all blocks on the device, so name one of them")
        return self
