"""What a run leaves behind while it goes on."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from studio.config.settings import Settings
from studio.config.values import lines, words

Tracker = Literal["tensorboard", "wandb", "mlflow"]


class Keeping(Settings):
    TITLE: ClassVar[str] = "Checkpoints and previews"

    save_every: int = Field(default=0, ge=0, description="Steps between checkpoints; 0 keeps only the last")
    keep_checkpoints: int = Field(default=2, ge=2, le=10_000, description="Newest checkpoints that can be resumed from; older ones keep their LoRA alone")
    anchor_every: int = Field(default=0, ge=0, description="Checkpoints of every so many steps can be resumed from for good; 0 is off")
    sample_every: int = Field(default=0, ge=0, description="Steps between preview pictures; 0 makes none")
    sample_prompts: Annotated[tuple[str, ...], BeforeValidator(lines)] = Field(
        default=(), max_length=16, description="Prompts of the preview pictures, one a line; empty takes captions of the set"
    )
    trackers: Annotated[tuple[Tracker, ...], BeforeValidator(words)] = Field(
        default=(), max_length=3, description="Also log to these, in the job's folder; by commas: tensorboard, wandb, mlflow"
    )
