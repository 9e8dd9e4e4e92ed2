"""How settings are written: rows of a stack, lists, names, sizes."""

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from studio.config.settings import Settings
from studio.errors import SettingsError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}$")]


class LoraWeight(Settings):
    """One row of a stack: an adapter by library name or file path, and its strength."""

    name: str = Field(min_length=1, description="Name in the library, or path of a .safetensors file")
    weight: float = Field(default=1.0, ge=-10, le=10, description="Strength; 0 is off, 1 as trained")

    @classmethod
    def parse(cls, text: str) -> Self:
        """NAME or NAME=WEIGHT. A path may hold '='; the last one counts only before a number."""
        name, equals, weight = text.rpartition("=")
        if not equals:
            return cls(name=text)
        try:
            return cls(name=name, weight=float(weight))
        except ValueError:
            return cls(name=text)


def parse_loras(value: Any) -> Any:
    """Rows of a stack, each as NAME, NAME=WEIGHT or an object."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        return tuple(LoraWeight.parse(item) if isinstance(item, str) else item for item in value)
    return value


def lines(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(line.strip() for line in value.splitlines() if line.strip())
    return value


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
