"""What counts as a good prediction, and what the model is shown."""

from typing import ClassVar

from pydantic import Field

from studio.config.settings import Settings


class Objective(Settings):
    TITLE: ClassVar[str] = "Objective"

    min_snr_gamma: float | None = Field(default=None, gt=0, le=100, description="Min-SNR loss weight (5 is usual); noise-predicting bases only; empty is off")
    flow_shift: float | None = Field(
        default=None, gt=0, le=100, description="Timestep shift of flow bases; empty follows the base's scheduler and the resolution"
    )
    caption_dropout: float = Field(default=0.0, ge=0, le=1, description="Share of steps that see an empty caption")
    flip: bool = Field(default=False, description="Also train on mirrored pictures; not for faces with a side parting, text or logos")
