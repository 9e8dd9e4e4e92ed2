"""Grids: one drawing for every combination of values along up to three axes."""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from studio.config.settings import Settings

MOST_CELLS = 400
SETTINGS = (
    *("seed", "steps", "guidance", "sampler", "width", "height", "strength", "true_cfg", "guidance_rescale"),
    *("variation_strength", "hires_scale", "hires_strength", "upscale_strength"),
)
KINDS = ("prompt", "negative_prompt", "weight", "lora", "checkpoint", "stack", *SETTINGS)
_RANGE = re.compile(r"(-?\d+(?:\.\d+)?)\.\.(-?\d+(?:\.\d+)?)(?:\.\.(\d+(?:\.\d+)?))?")


class Axis(Settings):
    """What changes along one side: a setting, a word of the prompt, a row of the stack, a checkpoint of a run."""

    kind: str = Field(description="The setting; prompt replaces a word, weight, lora and checkpoint are about a row of the stack, stack is all of it")
    target: str = Field(default="", max_length=200, description="The word that is replaced, or the row; empty is the first value, or the only row")
    values: tuple[str, ...] = Field(min_length=1, max_length=MOST_CELLS, description="What it takes one after the other")

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"is no axis of a grid; known are {', '.join(KINDS)}")
        return kind

    @classmethod
    def parse(cls, text: str) -> Self:
        """KIND=A,B,C or KIND:TARGET=A,B,C; A..B or A..B..STEP is a range, and | instead of commas parts values that hold some."""
        head, equals, tail = text.partition("=")
        kind, _, target = head.partition(":")
        if not equals:
            raise ValueError(f"grid axis {text!r} has no values; write steps=10,20 or weight:style=0,0.5,1")
        parts = [part.strip() for part in tail.split("|" if "|" in tail else ",")]
        values = [value for part in parts if part for value in _spread(part)]
        return cls.model_validate({"kind": kind.strip().replace("-", "_"), "target": target.strip(), "values": values})

    def __str__(self) -> str:
        """The axis as `parse` reads it."""
        bar = "|" if any("," in value for value in self.values) else ","
        return f"{self.kind}{':' if self.target else ''}{self.target}={bar.join(self.values)}"

    @property
    def title(self) -> str:
        return f"{self.kind.replace('_', ' ')} {self.target}".strip()


def parse_axes(value: Any) -> Any:
    """Axes, each as text or an object; several in one text stand on lines of their own."""
    if isinstance(value, str):
        value = [line for line in value.splitlines() if line.strip()]
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        return tuple(Axis.parse(item) if isinstance(item, str) else item for item in value)
    return value


class Grid(Settings):
    TITLE: ClassVar[str] = "X/Y/Z grid"

    grid: Annotated[tuple[Axis, ...], BeforeValidator(parse_axes)] = Field(
        default=(),
        max_length=3,
        description="Up to three axes, x, y and z: steps=10,20, weight:style=0,0.5,1, prompt:cat=cat,dog, stack=a=1+b=0.5|c=1, seed=1..4",
    )

    @model_validator(mode="after")
    def _few_enough(self) -> Self:
        cells = 1
        for axis in self.grid:
            cells *= len(axis.values)
        if cells > MOST_CELLS:
            raise ValueError(f"grid: {cells} pictures are more than {MOST_CELLS}; name fewer values")
        return self


def _spread(part: str) -> list[str]:
    """The values of a range, or the part as it is."""
    found = _RANGE.fullmatch(part)
    if not found:
        return [part]
    low, high, step = float(found[1]), float(found[2]), float(found[3] or 1)
    if step <= 0 or high < low:
        raise ValueError(f"grid range {part!r} must rise; write 1..4 or 0..1..0.25")
    n = int((high - low) / step + 1e-9) + 1
    if n > MOST_CELLS:
        raise ValueError(f"grid range {part!r} has {n} values, more than {MOST_CELLS}")
    return [f"{low + i * step:.10g}" for i in range(n)]
