"""What is trained: kind, size and places of the adapter."""

from typing import ClassVar, Literal

from pydantic import Field

from studio.config.settings import Settings

Targets = Literal["attention", "attention+mlp", "all-linear", "full+conv"]


class Network(Settings):
    TITLE: ClassVar[str] = "Network"

    network: Literal["lora"] = Field(default="lora", description="Kind of adapter")
    targets: Targets = Field(default="attention", description="Which layers get an adapter")
    rank: int | None = Field(default=None, ge=1, le=512, description="LoRA rank; the file grows linearly with it")
    alpha: float | None = Field(default=None, gt=0, le=4096, description="LoRA alpha; the update is scaled by alpha / rank. Empty: equal to rank")
    start_from: str | None = Field(default=None, description="Start from an existing LoRA: library name, run or file")
