"""LoRA tags in a prompt, `<lora:name:0.8>`, as A1111 and its followers write them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

from studio.config import LoraWeight, build
from studio.errors import SettingsError

_TAG = re.compile(r"<(lora|lyco|hypernet):([^<>]*)>", re.IGNORECASE)


@dataclass(frozen=True)
class Spoken:
    """A prompt without its tags, and what the tags asked for."""

    text: str
    loras: tuple[LoraWeight, ...]


def parse(prompt: str) -> Spoken:
    """Take the LoRA tags out of a prompt; all other text stays as it is. A name that comes twice counts with the sum of its weights.

    A tag is `<lora:name>`, `<lora:name:weight>`, `<lora:name:text:unet>` or named, `te=` and `unet=`. A stack has one weight for
    both parts, so the two must agree. Raises SettingsError in one line for a tag that means something else.
    """
    weights: dict[str, float] = {}
    text = prompt
    while found := _TAG.search(text):
        row = _row(found)
        weights[row.name] = weights.get(row.name, 0.0) + row.weight
        text = _join(text[: found.start()], text[found.end() :])
    return Spoken(text, tuple(build(LoraWeight, {"name": name, "weight": weight}) for name, weight in weights.items()))


def merge(rows: Iterable[LoraWeight], spoken: Iterable[LoraWeight]) -> tuple[LoraWeight, ...]:
    """The stack of a form and of a prompt in one: the rows first, then what only the prompt names. A row wins over a tag of its name."""
    stack = list(rows)
    taken = {stem(row.name) for row in stack}
    return (*stack, *(row for row in spoken if stem(row.name) not in taken))


def stem(name: str) -> str:
    """What a tag calls an adapter that is given by name or by file."""
    return PurePath(name.replace("\\", "/")).name.removesuffix(".safetensors")


def tag(name: str, weight: float) -> str:
    """The tag of one adapter. Without an exponent, which no reader expects."""
    return f"<lora:{name}:{number(weight)}>"


def number(value: float) -> str:
    """A decimal number as short as it can be, never with an exponent."""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def _row(found: re.Match[str]) -> LoraWeight:
    if found[1].lower() == "hypernet":
        raise SettingsError(f"prompt: {found[0]} is a hypernetwork, which the studio does not draw with; take the tag out")
    name, *rest = (item.strip() for item in found[2].split(":"))
    if not name:
        raise SettingsError(f"prompt: {found[0]} names no LoRA; write <lora:name:0.8>")
    positional = [item for item in rest if "=" not in item]
    named = {key.strip(): value.strip() for key, _, value in (item.partition("=") for item in rest if "=" in item)}
    unknown = sorted(set(named) - {"te", "unet"})
    if unknown or len(positional) > 2:
        what = f"{unknown[0]}=" if unknown else f"{len(positional)} weights"
        raise SettingsError(f"prompt: {found[0]} has {what}, which the studio does not know; write <lora:{name}:0.8>")
    text = _weight(found[0], name, named.get("te", positional[0] if positional else "1"))
    unet = _weight(found[0], name, named.get("unet", positional[1] if len(positional) == 2 else str(text)))
    if unet != text:
        raise SettingsError(f"prompt: {found[0]} has two weights, but a LoRA has one for all its parts; write <lora:{name}:{number(unet)}>")
    return build(LoraWeight, {"name": name, "weight": text})


def _weight(whole: str, name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise SettingsError(f"prompt: {whole} has the weight {value!r}, which is no number; write <lora:{name}:0.8>") from None


def _join(left: str, right: str) -> str:
    """The text on both sides of a tag, without the gap it leaves."""
    left, right = left.rstrip(" \t"), right.lstrip(" \t")
    if right.startswith(",") and (not left or left.endswith((",", "\n"))):
        right = right[1:].lstrip(" \t")
    if not right.strip():
        return left.rstrip(", \t") + right
    space = "" if not left or left.endswith("\n") or right.startswith((",", "\n", ".", ";")) else " "
    return left + space + right
