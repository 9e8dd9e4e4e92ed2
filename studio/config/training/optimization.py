"""How the weights move."""

from typing import ClassVar, Literal

from pydantic import Field

from studio.config.settings import Settings


class Optimization(Settings):
    TITLE: ClassVar[str] = "Optimizer"

    learning_rate: float | None = Field(default=None, gt=0, le=10, description="Step size of the optimizer")
    optimizer: Literal["adamw"] = Field(default="adamw", description="Optimizer")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(default="constant", description="How the learning rate moves after warm-up")
    warmup_steps: int = Field(default=0, ge=0, le=100_000, description="Steps over which the learning rate rises from 0")
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="AdamW weight decay")
    max_gradient_norm: float = Field(default=1.0, ge=0, le=1000, description="Gradients are clipped to this norm; 0 is off")
    seed: int = Field(default=-1, ge=-1, le=2**63 - 1, description="-1 draws one and records it")
