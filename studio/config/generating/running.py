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
    speed: Literal["auto", "eager", "graph"] = Field(
        default="auto", description="How the denoiser runs: graph replays it as one CUDA graph, which auto does where it can"
    )
    first_block_cache: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Look at the whole denoiser only when its first block has changed by this share since the last time: faster, and a little different; "
        "0 is off, 0.1 is careful",
    )
