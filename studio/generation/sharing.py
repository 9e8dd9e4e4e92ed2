"""Which part of a stack is baked into the weights and which runs beside them. Pure, without torch."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from studio.config import LoraWeight
from studio.errors import SettingsError
from studio.families.base import Facts
from studio.generation import strengths
from studio.generation.baked import Recipe
from studio.generation.live import Share, Shares

Mode = Literal["auto", "baked", "live"]
Placed = Mapping[str, Collection[str]]  # adapter's key -> paths of its layers
COSTLESS = "one stack for whole pictures costs nothing a step"


class Layers(Protocol):
    """What is asked about the base's layers."""

    def is_quantised(self, path: str) -> bool: ...

    def takes_side(self, path: str) -> bool: ...

    def has_side(self, key: str, path: str) -> bool: ...


@dataclass(frozen=True)
class Shared:
    """The denoiser's layers: what is baked into which, what runs beside which, and why."""

    baked: Mapping[str, Recipe]
    live: Shares
    reason: str


def gather(rows: Sequence[LoraWeight]) -> tuple[LoraWeight, ...]:
    """One row for each adapter and each way it is used, in an order of its own; rows that come to nothing are left out."""
    summed: dict[str, list[LoraWeight]] = {}
    for row in map(strengths.constant, rows):
        way = row.model_copy(update={"weight": 0.0, "text_weight": 0.0, "blocks": dict(sorted(row.blocks.items()))})
        summed.setdefault(str(way), []).append(row)
    found = []
    for way in sorted(summed):
        same = summed[way]
        weight = strengths.total([row.weight for row in same])
        text = strengths.total([row.weight if row.text_weight is None else row.text_weight for row in same])
        if weight or text:
            found.append(same[0].model_copy(update={"weight": weight, "text_weight": text}))
    return tuple(found)


def share(images: Sequence[Sequence[LoraWeight]], placed: Placed, facts: Facts, mode: Mode, layers: Layers) -> Shared:
    """Divide the denoiser's part of the stacks. images: for each image of the batch its gathered rows, called by the adapters' keys.

    Raises SettingsError where a strength that moves, or differs from image to image, is asked of what can only be baked.
    """
    baked: dict[str, Recipe] = {}
    live: dict[str, tuple[Share, ...]] = {}
    why: dict[str, None] = {}
    left = 0
    for path, found in _by_layer(images, placed, facts).items():
        must = {one: reason for one in found if (reason := _must(one, path, layers))}
        beside = [one for one in found if one in must or (mode == "live" and layers.has_side(one.key, path))]
        if must and mode == "baked":
            raise SettingsError(f"stack_mode baked: {next(iter(must.values()))}; take auto or live")
        if must and not layers.takes_side(path):
            raise SettingsError(f"{path} is a bias or a norm, which can only be baked, but {next(iter(must.values()))}; give the LoRA one strength")
        why |= dict.fromkeys(must.values())
        left += mode == "live" and len(beside) < len(found)
        if beside:
            live[path] = tuple(beside)
        if len(beside) < len(found):
            baked[path] = tuple((one.key, one.weights[0]) for one in found if one not in beside)
    return Shared(baked, live, _reason(mode, list(why), left))


def spoken(rows: Sequence[LoraWeight], placed: Placed, facts: Facts, wanted: Callable[[str], bool]) -> dict[str, Recipe]:
    """What one image's stack makes of those layers of the text encoders that are wanted."""
    found = _by_layer([rows], placed, facts, denoiser=False)
    return {path: tuple((one.key, one.weights[0]) for one in shares) for path, shares in found.items() if wanted(path)}


def constant(recipes: Mapping[str, Recipe]) -> Shares:
    """The same sums, to run beside the layers."""
    return {path: tuple(Share(key, (weight,)) for key, weight in recipe) for path, recipe in recipes.items()}


def _by_layer(images: Sequence[Sequence[LoraWeight]], placed: Placed, facts: Facts, denoiser: bool = True) -> dict[str, tuple[Share, ...]]:
    """Every layer with what each adapter has in it; paths, and shares in a path, in a fixed order."""
    prefix = f"{facts.denoiser}."
    found: dict[str, dict[tuple[str, tuple[tuple[float, float], ...]], list[list[float]]]] = {}
    for image, rows in enumerate(images):
        for row in rows:
            for path in placed[row.name]:
                weight = strengths.on_path(row, path, facts) if path.startswith(prefix) == denoiser else 0.0
                if weight:
                    way = (row.name, row.schedule if denoiser else ())
                    found.setdefault(path, {}).setdefault(way, [[] for _ in images])[image].append(weight)
    shares = {path: [Share(way[0], tuple(map(strengths.total, found[path][way])), way[1]) for way in sorted(found[path])] for path in sorted(found)}
    kept = {path: tuple(one for one in row if any(one.weights)) for path, row in shares.items()}
    return {path: row for path, row in kept.items() if row}


def _must(one: Share, path: str, layers: Layers) -> str:
    """Why a share cannot be baked; empty if it can."""
    if one.schedule:
        return "strengths move over the steps"
    if len(set(one.weights)) > 1:
        return "the pictures of a batch have different stacks"
    return "the base's weights are quantised" if layers.is_quantised(path) else ""


def _reason(mode: Mode, why: list[str], left: int) -> str:
    kept = f"; {left} layers have no short form and are baked" if left else ""
    if mode == "live":
        return f"live was asked for{kept}"
    return " and ".join(why) or ("baked was asked for" if mode == "baked" else COSTLESS)
