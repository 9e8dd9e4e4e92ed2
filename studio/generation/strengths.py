"""How strong a row of the stack is: on which part and block of the base, and at which denoising step. Pure, without torch."""

import math
import re
from collections.abc import Mapping, Sequence

from studio.config import LoraWeight
from studio.errors import SettingsError
from studio.families.base import Facts

Strength = float | LoraWeight  # a number everywhere and at all times, or a row of its own


def row_of(strength: Strength, name: str) -> LoraWeight:
    """The strength as a row of this name."""
    return strength.model_copy(update={"name": name}) if isinstance(strength, LoraWeight) else LoraWeight.model_construct(name=name, weight=strength)


def check(row: LoraWeight, facts: Facts) -> None:
    """Raises SettingsError if the row names a block that bases of this family do not have."""
    for block in row.blocks:
        group, _, number = block.partition(".")
        pattern = facts.blocks.get(group)
        if pattern is None:
            raise SettingsError(f"LoRA {row.name}: {facts.title} has no blocks {group!r}; its groups are {', '.join(facts.blocks)}")
        if number and r"(\d+)" not in pattern:
            raise SettingsError(f"LoRA {row.name}: {group} is one block, without numbers; write {group}=0.5")


def on_path(row: LoraWeight, path: str, facts: Facts) -> float:
    """The row's strength on one layer, before any schedule. The narrowest block that names the layer counts; without one the factor is 1."""
    part, _, inside = path.partition(".")
    if part != facts.denoiser:
        return row.weight if row.text_weight is None else row.text_weight
    if not row.blocks:
        return row.weight
    for group, pattern in facts.blocks.items():
        found = re.match(pattern, inside)
        if found:
            return row.weight * _narrowest(row.blocks, group, int(found[1]) if found.groups() else None)
    return row.weight


def place(path: str, facts: Facts) -> str:
    """The block of a layer as rows call it, or its part of the base."""
    part, _, inside = path.partition(".")
    for group, pattern in facts.blocks.items() if part == facts.denoiser else ():
        found = re.match(pattern, inside)
        if found:
            return f"{group}.{found[1]}" if found.groups() else group
    return part


def at(schedule: Sequence[tuple[float, float]], position: float) -> float:
    """The schedule's factor at a share of the denoising, 0 the first step and 1 the last: straight between points, level outside them."""
    if not schedule:
        return 1.0
    before = [point for point in schedule if point[0] <= position]
    after = [point for point in schedule if point[0] > position]
    if not before or not after:
        return (before[-1] if before else after[0])[1]
    (a, low), (b, high) = before[-1], after[0]
    return low + (high - low) * (position - a) / (b - a)


def constant(row: LoraWeight) -> LoraWeight:
    """The same row without a schedule if that is level: what it says is then one number."""
    factors = {factor for _, factor in row.schedule}
    if len(factors) != 1:
        return row
    factor = factors.pop()
    text = row.weight if row.text_weight is None and factor != 1 else row.text_weight  # a schedule leaves the text encoders alone
    return row.model_copy(update={"weight": row.weight * factor, "text_weight": text, "schedule": ()})


def position(step: int, steps: int) -> float:
    """Where step number `step`, from 0, of `steps` lies between 0 and 1."""
    return 0.0 if steps < 2 else min(1.0, step / (steps - 1))


def total(strengths: Sequence[float]) -> float:
    """The sum, in which order changes no bit."""
    return math.fsum(strengths)


def _narrowest(blocks: Mapping[str, float], group: str, number: int | None) -> float:
    named: list[tuple[float, float]] = []
    for block, factor in blocks.items():
        name, _, numbers = block.partition(".")
        if name != group:
            continue
        first, _, last = numbers.partition("-")
        low, high = (int(first), int(last or first)) if numbers else (0, math.inf)
        if number is None or low <= number <= high:
            named.append((high - low, factor))
    return min(named, key=lambda pair: pair[0])[1] if named else 1.0
