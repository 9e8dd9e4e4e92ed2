"""How a run finds out when it is good: pictures that it never trains on."""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from studio.config.settings import Settings


class Judging(Settings):
    TITLE: ClassVar[str] = "Held-out pictures"

    validation_fraction: float = Field(
        default=0.0, ge=0, le=0.5, description="Share of the pictures that is never trained on; the loss on them tells when to stop. 0 is off"
    )
    validation_every: int = Field(default=50, ge=1, le=1_000_000, description="Steps between looks at the held-out pictures")
    early_stop: int | None = Field(default=None, ge=1, le=1000, description="End the run after so many looks without a new best; empty never does")
    keep_best: bool = Field(default=True, description="Keep the checkpoint with the lowest held-out loss; the finished LoRA is made from it")
    rank_probe: bool = Field(
        default=False, description="Afterwards also offer a smaller file: each layer trimmed to the ranks that held-out pictures cannot do without"
    )

    @model_validator(mode="after")
    def _something_to_look_at(self) -> Self:
        if self.early_stop is not None and not self.validation_fraction:
            raise ValueError("early_stop needs held-out pictures: set validation_fraction, 0.1 to 0.25 is usual")
        if self.rank_probe and not self.validation_fraction:
            raise ValueError("rank_probe needs held-out pictures: set validation_fraction, 0.1 to 0.25 is usual")
        return self
