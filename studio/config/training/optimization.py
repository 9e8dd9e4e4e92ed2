"""How the weights move."""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from studio.config.settings import Settings
from studio.errors import SettingsError

Optimizer = Literal["adamw", "adamw8bit", "adafactor", "lion", "prodigy", "schedule-free", "came"]
Schedule = Literal["constant", "linear", "cosine", "cosine-restarts", "polynomial"]

# What an optimizer wants where a base's habits were made for AdamW.
HABITS: Mapping[str, Mapping[str, Any]] = {"prodigy": {"learning_rate": 1.0}}  # it finds the rate itself; 1.0 leaves what it finds alone

PACKAGES: Mapping[str, str] = {"adamw8bit": "bitsandbytes"}  # those that do not come with the studio


def check_installed(optimizer: str) -> None:
    """Raise SettingsError if the package of an optimizer is not there."""
    package = PACKAGES.get(optimizer)
    if package and find_spec(package) is None:
        raise SettingsError(f"optimizer {optimizer!r}: the package is not installed; pip install {package}, or take another optimizer")


def pairs(value: Any) -> Any:
    """KEY=VALUE words, separated by blanks or lines; a value may hold commas."""
    rows = [value] if isinstance(value, str) else value
    if not isinstance(rows, Iterable) or isinstance(rows, Mapping):
        return value
    found = [word for row in rows for word in (row.replace(";", " ").split() if isinstance(row, str) else [row])]
    for word in found:
        if isinstance(word, str) and (not word.partition("=")[0] or not word.partition("=")[2]):
            raise ValueError(f"{word!r} is not KEY=VALUE, for example betas=0.9,0.99")
    return tuple(found)


class Optimization(Settings):
    TITLE: ClassVar[str] = "Optimizer"

    learning_rate: float | None = Field(default=None, gt=0, le=10, description="Step size of the optimizer; Prodigy finds its own and takes 1")
    optimizer: Optimizer = Field(
        default="adamw", description="AdamW suits nearly everything; adamw8bit, adafactor and came need less memory, prodigy and schedule-free less tuning"
    )
    optimizer_options: Annotated[tuple[str, ...], BeforeValidator(pairs)] = Field(
        default=(), max_length=20, description="Further numbers of the optimizer by its own names, KEY=VALUE, for example betas=0.9,0.99 or d_coef=0.8"
    )
    lr_schedule: Schedule = Field(default="constant", description="How the learning rate moves after warm-up")
    lr_cycles: int = Field(default=3, ge=1, le=1000, description="How often schedule cosine-restarts comes down")
    lr_power: float = Field(default=2.0, gt=0, le=10, description="Exponent of schedule polynomial; 1 is a straight line")
    warmup_steps: int = Field(default=0, ge=0, le=100_000, description="Steps over which the learning rate rises from 0")
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="How strongly weights are drawn to zero")
    max_gradient_norm: float = Field(default=1.0, ge=0, le=1000, description="Gradients are clipped to this norm; 0 is off")
    ema_decay: float | None = Field(
        default=None,
        ge=0.5,
        lt=1,
        description="Moving average of the weights; previews and the result use it (0.99 for short runs, 0.999 for long); empty is off",
    )
    seed: int = Field(default=-1, ge=-1, le=2**63 - 1, description="-1 draws one and records it")

    @model_validator(mode="after")
    def _one_average(self) -> Self:
        if self.ema_decay is not None and self.optimizer == "schedule-free":
            raise ValueError("optimizer schedule-free averages the weights itself: leave ema_decay empty, or take another optimizer")
        return self
