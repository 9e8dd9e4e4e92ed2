"""How a picture is drawn: seed, steps, guidance, size, sampler."""

from typing import ClassVar

from pydantic import Field

from studio.config.settings import Settings


class Drawing(Settings):
    TITLE: ClassVar[str] = "Drawing"

    seed: int = Field(default=-1, ge=-1, le=2**63 - 1, description="-1 draws one and records it")
    steps: int | None = Field(default=None, ge=1, le=500, description="Denoising steps")
    guidance: float | None = Field(default=None, ge=0, le=100, description="How strongly the prompt is followed")
    width: int | None = Field(default=None, ge=64, le=8192, description="Pixels; empty takes the base's own, or the shape of init_image")
    height: int | None = Field(default=None, ge=64, le=8192, description="Pixels; empty takes the base's own, or the shape of init_image")
    count: int = Field(default=1, ge=1, le=1000, description="Pictures, each with the next seed")
    sampler: str | None = Field(default=None, description="Sampler; empty takes the base's own")
    true_cfg: float | None = Field(
        default=None,
        ge=1,
        le=100,
        description="For bases with distilled guidance: draw away from the negative prompt too, at twice the time; empty is off",
    )
    guidance_rescale: float = Field(default=0.0, ge=0, le=1, description="Tame contrast and colours at high guidance; 0 is off, 0.7 is usual for v-prediction")
