"""Whether the LoRAs of a stack get into each other's way, from their factors alone: no base, no picture.

All measures are inner products of differences, <A, B> = sum over layers of tr(A^T B), computed from r x r products of the factors:

* energy: ||w A||, how much a row changes at its weight.
* overlap of two rows: <A, B> / (||A|| ||B||). 1: the same change, strengths add up; 0: nothing in common; -1: they cancel.
* shared: the part of the smaller row's energy that lies in the same input and output directions, whatever the sign, 0 to 1.
* growth of the stack: ||sum|| over the root of the sum of squares; 1 if the rows have nothing in common, root n if they are the same.
* spike: a layer whose energy lies in one direction and is far above the others; a known way for a stack to burn.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from studio.families import FAMILIES
from studio.generation import strengths
from studio.generation.strengths import Strength
from studio.lora.adapter import Adapter, Decomposed, Layer
from studio.lora.products import low_rank, whole

if TYPE_CHECKING:
    from torch import Tensor

ALIKE, AGAINST = 0.5, -0.3  # overlaps from which two rows are said to do the same, or to work against each other
CROWDED = 0.5  # of the smaller row's energy in directions of the other
GROWN = 1.15  # other weights are suggested if the stack changes so many times what its rows would as trained, with nothing in common
SPIKE_SHARE, SPIKE_SIZE, SPIKE_RANK = 0.9, 4.0, 4  # share of one direction; energy against the median layer; rank from which it means something
PLACES = 3  # blocks named with a finding


@dataclass(frozen=True)
class Row:
    """One row of the stack at its weight."""

    name: str
    weight: float
    layers: int
    energy: float
    spikes: tuple[str, ...]  # layers
    note: str = ""


@dataclass(frozen=True)
class Pair:
    """Two rows against each other; places: the blocks that most of it comes from."""

    a: str
    b: str
    overlap: float
    shared: float
    layers: int  # that both change
    places: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """What was found, in numbers and in sentences. suggested: weights by name, where others would do better."""

    verdict: Literal["fine", "watch", "clash"]
    sentences: tuple[str, ...]
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    growth: float
    suggested: Mapping[str, float]

    @property
    def values(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


_Factors = dict[str, "tuple[Tensor, Tensor]"]  # layer's path -> up (out, r) at its strength, down (r, in)


def check(stack: Sequence[tuple[Adapter, Strength]], names: Sequence[str]) -> Check:
    """Compare the rows of a stack. Rows that are off take no part."""
    rows = [(adapter, strengths.row_of(strength, name)) for (adapter, strength), name in zip(stack, names, strict=True)]
    rows = [(adapter, row) for adapter, row in rows if not row.off]
    factors = [_factors(adapter, row) for adapter, row in rows]
    found = tuple(_row(adapter, row, own) for (adapter, row), own in zip(rows, factors, strict=True))
    pairs = tuple(_pair(found[i], found[j], factors[i], factors[j], rows[i][0].family) for i, j in itertools.combinations(range(len(rows)), 2))
    squares = sum(row.energy**2 for row in found)
    cross = sum(2 * pair.overlap * a.energy * b.energy for pair, (a, b) in zip(pairs, itertools.combinations(found, 2), strict=True))
    growth = math.sqrt(max(0.0, squares + cross) / squares) if squares else 1.0
    as_trained = sum((row.energy * max(1.0, 1 / abs(row.weight) if row.weight else 1.0)) ** 2 for row in found)
    crowded = squares > 0 and growth * math.sqrt(squares) >= GROWN * math.sqrt(as_trained)
    suggested = _suggested(found, pairs, growth) if crowded else {}
    said = [*_about_pairs(pairs), *_about_rows(found), *_about_all(growth, suggested)]
    clash = any(pair.overlap <= AGAINST or (crowded and pair.overlap >= ALIKE) for pair in pairs)
    verdict = "clash" if clash else "watch" if said else "fine"
    return Check(verdict, tuple(said) or (_in_peace(len(found)),), found, pairs, round(growth, 4), suggested)


def _factors(adapter: Adapter, row: Any) -> _Factors:
    family = FAMILIES.get(adapter.family)
    found: _Factors = {}
    for path, layer in adapter.layers.items():
        weight = strengths.on_path(row, path, family.facts) if family else row.weight
        if weight:
            up, down = _product(layer)
            found[path] = (up.double() * weight, down.double())
    return found


def _product(layer: Layer) -> "tuple[Tensor, Tensor]":
    inner = layer.layer if isinstance(layer, Decomposed) else layer  # without the base, only the direction of a DoRA is known
    short = low_rank(inner)
    if short is not None:
        return short
    difference = inner.delta()
    return whole(difference if difference.dim() > 1 else difference[:, None])


def _row(adapter: Adapter, row: Any, own: _Factors) -> Row:
    energies = {path: math.sqrt(max(0.0, _inner(pair, pair))) for path, pair in own.items()}
    middle = statistics.median(energies.values()) if energies else 0.0
    spikes = [path for path, pair in own.items() if energies[path] >= SPIKE_SIZE * middle > 0 and _is_spike(pair)]
    decomposed = any(isinstance(layer, Decomposed) for layer in adapter.layers.values())
    note = "is a DoRA, whose lengths depend on the base; only its directions are compared" if decomposed else ""
    return Row(row.name, row.weight, len(own), _rounded(math.sqrt(sum(value**2 for value in energies.values()))), tuple(spikes), note)


def _pair(a: Row, b: Row, one: _Factors, other: _Factors, family: str) -> Pair:
    both = [path for path in one if path in other]
    inner = {path: _inner(one[path], other[path]) for path in both}
    overlap = sum(inner.values()) / (a.energy * b.energy) if a.energy and b.energy else 0.0
    smaller, larger = (one, other) if a.energy <= b.energy else (other, one)
    within = sum(_within(smaller[path], larger[path]) for path in both)
    least = min(a.energy, b.energy) ** 2
    by_place: dict[str, float] = {}
    for path, value in inner.items():
        place = strengths.place(path, FAMILIES[family].facts) if family in FAMILIES else path.partition(".")[0]
        by_place[place] = by_place.get(place, 0.0) + abs(value)
    places = sorted(by_place, key=lambda place: -by_place[place])[:PLACES]
    return Pair(a.name, b.name, _bounded(overlap), max(0.0, _bounded(within / least if least else 0.0)), len(both), tuple(places))


def _inner(one: "tuple[Tensor, Tensor]", other: "tuple[Tensor, Tensor]") -> float:
    """<up1 down1, up2 down2> from r x r products."""
    return float(((one[0].T @ other[0]) * (one[1] @ other[1].T)).sum())


def _within(one: "tuple[Tensor, Tensor]", other: "tuple[Tensor, Tensor]") -> float:
    """Squared norm of what is left of `one` in the other's output and input directions."""
    import torch

    left, right = _directions(other[0]), _directions(other[1].T)
    return float(torch.linalg.matrix_norm((left.T @ one[0]) @ (one[1] @ right)).square())


def _directions(matrix: "Tensor") -> "Tensor":
    """An orthonormal basis of the columns, without directions that are only rounding."""
    import torch

    u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, s > 1e-9 * s.max().clamp(min=1e-300)]


def _is_spike(pair: "tuple[Tensor, Tensor]") -> bool:
    import torch

    if pair[1].shape[0] < SPIKE_RANK:
        return False
    values = torch.linalg.svdvals(torch.linalg.qr(pair[0]).R @ torch.linalg.qr(pair[1].T).R.T).square()
    return bool(values[0] >= SPIKE_SHARE * values.sum())


def _suggested(rows: Sequence[Row], pairs: Sequence[Pair], growth: float) -> dict[str, float]:
    """Weights at which rows that do the same together change as much as rows with nothing in common would."""
    involved = {name for pair in pairs if pair.overlap > 0 for name in (pair.a, pair.b)}
    return {row.name: round(round(20 * row.weight / growth) / 20, 2) for row in rows if row.name in involved}


def _about_pairs(pairs: Sequence[Pair]) -> list[str]:
    said = []
    for pair in pairs:
        where = f", most in {', '.join(pair.places)}" if pair.places else ""
        if pair.overlap >= ALIKE:
            said.append(f"{pair.a} and {pair.b} make much the same change ({pair.overlap:.0%} overlap{where}): their strengths add up")
        elif pair.overlap <= AGAINST:
            said.append(f"{pair.a} and {pair.b} work against each other ({-pair.overlap:.0%} cancels{where}): turn one of them down or off")
        elif pair.shared >= CROWDED:
            said.append(f"{pair.a} and {pair.b} use the same directions ({pair.shared:.0%} of the smaller one{where}): the one may show in the other's subject")
    return said


def _about_rows(rows: Sequence[Row]) -> list[str]:
    said = [
        f"{row.name} has {len(row.spikes)} layer{'s' if len(row.spikes) > 1 else ''} with nearly all force in one direction, first {next(iter(row.spikes))}: "
        "it may burn when stacked; a lower weight or a resize helps"
        for row in rows
        if row.spikes
    ]
    return said + [f"{row.name} {row.note}" for row in rows if row.note]


def _about_all(growth: float, suggested: Mapping[str, float]) -> list[str]:
    if not suggested:
        return []
    weights = ", ".join(f"{name} {weight:g}" for name, weight in suggested.items())
    return [f"together they change {growth:.2f} times what LoRAs with nothing in common would; try {weights}"]


def _in_peace(n: int) -> str:
    return "One LoRA alone is in nobody's way" if n < 2 else f"The {n} LoRAs have next to nothing in common: each can have its full weight"


def _bounded(value: float) -> float:
    return round(max(-1.0, min(1.0, value)), 6)


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")
