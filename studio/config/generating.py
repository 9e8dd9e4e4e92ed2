"""Settings of a picture."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from studio.config.bases import BaseChoice
from studio.config.values import LoraWeight, parse_loras


class GenerateConfig(BaseChoice):
    prompt: str = Field(default="", max_length=20_000, description="What to draw")
    negative_prompt: str = Field(default="", max_length=20_000, description="What to avoid; bases with guided distillation ignore it")
    loras: Annotated[tuple[LoraWeight, ...], BeforeValidator(parse_loras)] = Field(
        default=(), max_length=64, description="The stack: adapters and their weights"
    )
    seed: int = Field(default=-1, ge=-1, le=2**63 - 1, description="-1 draws one and records it")
    steps: int | None = Field(default=None, ge=1, le=500, description="Denoising steps")
    guidance: float | None = Field(default=None, ge=0, le=100, description="How strongly the prompt is followed")
    width: int | None = Field(default=None, ge=64, le=8192, description="Pixels")
    height: int | None = Field(default=None, ge=64, le=8192, description="Pixels")
    count: int = Field(default=1, ge=1, le=1000, description="Pictures, each with the next seed")
    sampler: str | None = Field(default=None, description="Sampler; empty takes the base's own")
    batch: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Pictures drawn at once; more is faster on a GPU, but a picture then differs in its last digits from one drawn alone",
    )
    stack_mode: Literal["auto", "baked", "live"] = Field(
        default="auto", description="How the stack acts: baked into the weights, or live beside them, which schedules and quantised bases need"
    )
    speed: Literal["auto", "eager", "graph", "compile"] = Field(
        default="auto", description="How the denoiser runs: graph replays it as one CUDA graph, compile makes kernels of its own first, which takes a minute"
    )
