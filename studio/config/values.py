"""How settings are written: rows of a stack, lists, names, sizes."""

import math
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator

from studio.config.settings import Settings
from studio.errors import SettingsError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}$")]


_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_ROW = re.compile(rf"(?P<name>.+?)=(?P<weight>{_NUMBER})(?P<options>(?:,[a-z]+(?:\.\d+(?:-\d+)?)?=[^=,]*)*)")
Block = Annotated[str, Field(pattern=r"^[a-z]+(\.\d+(-\d+)?)?$")]
Factor = Annotated[float, Field(ge=-10, le=10)]
Position = Annotated[float, Field(ge=0, le=1)]


def parse_curve(value: Any) -> Any:
    """A curve over the denoising steps, as pairs or as the text FACTOR@POSITION/FACTOR@POSITION."""
    if not isinstance(value, str):
        return value
    points = [re.fullmatch(rf"({_NUMBER})@({_NUMBER})", part.strip()) for part in value.split("/")]
    if not all(points):
        raise ValueError("is no curve; write FACTOR@POSITION/FACTOR@POSITION, for example 1@0/0.5@0.6/0@1")
    return tuple((float(point[2]), float(point[1])) for point in points if point)


class LoraWeight(Settings):
    """One row of a stack: an adapter by library name or file path, and its strength where and when."""

    name: str = Field(min_length=1, description="Name in the library, or path of a .safetensors file")
    weight: float = Field(default=1.0, ge=-10, le=10, description="Strength; 0 is off, 1 as trained")
    text_weight: float | None = Field(default=None, ge=-10, le=10, description="Strength on the text encoders; empty is the same as on the denoiser")
    blocks: dict[Block, Factor] = Field(
        default={}, description="Factors of block groups of the denoiser: input, middle, output; double, single; with a number or a range, single.20-37"
    )
    schedule: Annotated[tuple[tuple[Position, Factor], ...], BeforeValidator(parse_curve)] = Field(
        default=(), max_length=64, description="Factors over the denoising, straight between points: (position from 0, the first step, to 1, the last; factor)"
    )

    @field_validator("schedule")
    @classmethod
    def _in_order(cls, points: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        if any(a[0] >= b[0] for a, b in pairwise(points)):
            raise ValueError("positions must rise from point to point")
        return points

    @property
    def plain(self) -> bool:
        """Whether the row is one number everywhere and at all times."""
        return self.text_weight is None and not self.blocks and not self.schedule

    @property
    def off(self) -> bool:
        """Whether the row changes nothing."""
        return not self.weight and not self.text_weight

    @classmethod
    def parse(cls, text: str) -> Self:
        """NAME, NAME=WEIGHT or NAME=WEIGHT,text=W,BLOCK=FACTOR,curve=FACTOR@POSITION/...; a path may hold '=' and ','."""
        found = _ROW.fullmatch(text)
        if not found:
            return cls(name=text)
        values: dict[str, Any] = {"name": found["name"], "weight": float(found["weight"])}
        options: dict[str, Any] = dict(option.split("=") for option in found["options"].split(",")[1:])
        if "text" in options:
            values["text_weight"] = options.pop("text")
        if "curve" in options:
            values["schedule"] = options.pop("curve")
        return cls(**values, blocks=options)

    def __str__(self) -> str:
        """The row as `parse` reads it."""
        text = [] if self.text_weight is None else [f"text={self.text_weight:g}"]
        curve = "/".join(f"{factor:g}@{position:g}" for position, factor in self.schedule)
        parts = [*text, *(f"{block}={factor:g}" for block, factor in self.blocks.items()), *([f"curve={curve}"] if curve else [])]
        return ",".join([f"{self.name}={self.weight:g}", *parts])


def parse_loras(value: Any) -> Any:
    """Rows of a stack, each as NAME, NAME=WEIGHT or an object."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        return tuple(LoraWeight.parse(item) if isinstance(item, str) else item for item in value)
    return value


def plain_loras(rows: tuple[LoraWeight, ...]) -> tuple[LoraWeight, ...]:
    """Rows for what knows one number an adapter. Raises ValueError for any other."""
    for row in rows:
        if not row.plain:
            raise ValueError(f"{row.name} has strengths by part, block or step, which a file cannot hold; give it one weight")
    return rows


def lines(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(line.strip() for line in value.splitlines() if line.strip())
    return value


def rows(value: Any) -> Any:
    """Lines of PATTERN=NUMBER, out of such lines or a table {pattern: number}."""
    if isinstance(value, Mapping):
        value = tuple(f"{pattern}={number}" for pattern, number in value.items())
    if isinstance(value, str | list | tuple):
        value = tuple(line for item in ([value] if isinstance(value, str) else value) for line in (lines(item) if isinstance(item, str) else (item,)))
        numbered(row for row in value if isinstance(row, str))
    return value


def numbered(given: Iterable[str]) -> dict[str, float]:
    """{pattern: number} of lines PATTERN=NUMBER; a pattern may hold '='. Raises ValueError naming the line."""
    found = {}
    for row in given:
        pattern, _, number = row.rpartition("=")
        try:
            found[pattern.strip()] = float(number)
        except ValueError:
            pattern = ""
        if not pattern.strip() or not 0 < found[pattern.strip()] < math.inf:
            raise ValueError(f"{row!r} is not PATTERN=NUMBER with a number above 0, for example attn2=8")
    return found


def words(value: Any) -> Any:
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        rows = [item.replace("\n", ",").split(",") if isinstance(item, str) else [item] for item in value]
        return tuple(dict.fromkeys(item.strip() if isinstance(item, str) else item for row in rows for item in row if item))
    return value


def parse_size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT in pixels, as `--size` takes it."""
    width, _, height = text.lower().partition("x")
    if not (width.strip().isdigit() and height.strip().isdigit()):
        raise SettingsError(f"size {text!r} is not WIDTHxHEIGHT, for example 1024x1024")
    return int(width), int(height)


def safe_stem(name: str) -> str:
    """A file stem that Civitai and A1111 can read in `<lora:stem:1>`: letters, digits, `_ . -`."""
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "-" for c in PurePath(name).name).strip("-.")
    return stem[:100] or "lora"
