"""How the work is done: how many pictures at once, how the stack acts, how the denoiser runs."""

from typing import ClassVar, Literal

from pydantic import Field

from studio.config.settings import Settings


class Running(Settings):
    TITLE: ClassVar[str] = "Speed"

    batch: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Pictures drawn at once, also those of waiting jobs; faster on a GPU, but a picture differs in its last digits from one drawn alone",
    )
    stack_mode: Literal["auto", "baked", "live"] = Field(
        default="auto", description="How the stack acts: baked into the weights, or live beside them, which schedules and quantised bases need"
    )
    speed: Literal["auto", "eager", "graph", "compile"] = Field(
        default="auto", description="How the denoiser runs: graph replays it as one CUDA graph, compile makes kernels of its own first, which takes a minute"
    )
