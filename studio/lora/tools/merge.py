"""Several adapters as one."""

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from studio.errors import FormatError
from studio.events import Loading
from studio.families import FAMILIES
from studio.lora.adapter import Adapter, Decomposed, Difference, Layer, LowRank
from studio.lora.tools import Made, Progress, factors, origin

if TYPE_CHECKING:
    from torch import Tensor

Method = Literal["concat", "svd"]
Row = tuple[str, Adapter, float]  # what it is called, the adapter, its weight


def merge(rows: Sequence[Row], name: str, method: Method = "concat", rank: int = 0) -> Generator[Loading, None, Made]:
    """The weighted sum of adapters of one family.

    concat: exact, ranks add up, and where they exceed what the layer can have, come back to that. svd: the best sum of at most `rank`,
    the residual of every layer reported. Layers that are no pair of factors are added up as whole differences, or cut to `rank`.
    """
    rows = [row for row in rows if row[2]]
    _check(rows)
    by_path: dict[str, list[tuple[Layer, float]]] = {}
    for _, adapter, weight in rows:
        for path, layer in adapter.layers.items():
            by_path.setdefault(path, []).append((layer, weight))
    progress = Progress("merging", len(by_path))
    layers: dict[str, Layer] = {}
    told: dict[str, dict[str, float]] = {}
    lost = energy = 0.0
    for path in sorted(by_path):
        layers[path], away, whole = _sum(path, by_path[path], method, rank)
        told[path] = {"rank": layers[path].rank, "residual": factors.share(away, whole)}
        lost, energy = lost + away, energy + whole
        yield from progress.step()
    whole_ones = [path for path, layer in layers.items() if isinstance(layer, Difference)]
    notes = (
        [f"{len(whole_ones)} layers are kept whole, for they are no plain LoRA layers; method svd makes them small"]
        if whole_ones and method == "concat"
        else []
    )
    embeddings: dict[str, Mapping[str, Tensor]] = {}
    for called, adapter, _ in rows:
        twice = [word for word in adapter.embeddings if word in embeddings]
        notes += [f"{called} brings the word {word!r}, which a LoRA before it brings too; that one's is kept" for word in twice]
        embeddings = {**adapter.embeddings, **embeddings}
    summary = " + ".join(f"{weight:g} x {origin.title(adapter.metadata, called)}" for called, adapter, weight in rows)
    metadata = origin.of_adapter(rows[0][1].family, name, [(called, adapter.metadata) for called, adapter, _ in rows], f"Merged: {summary}", rank)
    report = {"method": method, "residual": factors.share(lost, energy), "layers": told}
    return Made(Adapter(rows[0][1].family, layers, metadata, embeddings), report, tuple(notes))


def _check(rows: Sequence[Row]) -> None:
    if not rows:
        raise FormatError("nothing to merge: every weight is 0; name a LoRA with another weight")
    if not any(adapter.layers for _, adapter, _ in rows):
        raise FormatError("nothing to merge: all of them hold new words alone; put them on together instead")
    first, one, _ = rows[0]
    for called, adapter, _ in rows:
        if adapter.family != one.family:
            titles = [FAMILIES[family].facts.title if family in FAMILIES else family for family in (one.family, adapter.family)]
            raise FormatError(f"{first} is a LoRA for {titles[0]}, {called} for {titles[1]}; only LoRAs for the same kind of base can be merged")
        for path, layer in adapter.layers.items():
            other = one.layers.get(path)
            if other is not None and tuple(other.shape) != tuple(layer.shape):
                raise FormatError(f"{path}: {first} is for {list(other.shape)}, {called} for {list(layer.shape)}; they are for bases of different sizes")
            if isinstance(layer, Decomposed):
                raise FormatError(f"{called}: holds DoRA layers, whose effect depends on the base; bake it into a base and extract a LoRA from that first")


def _sum(path: str, layers: Sequence[tuple[Layer, float]], method: Method, rank: int) -> tuple[Layer, float, float]:
    """The layer of the sum, and the squared norms of what was lost and of the whole."""
    pairs = [(layer, weight) for layer, weight in layers if isinstance(layer, LowRank)]
    shape = tuple(layers[0][0].shape)
    if any(tuple(layer.shape) != shape for layer, _ in layers):
        raise FormatError(f"{path}: the LoRAs are for weights of different shapes; they are for bases of different sizes")
    if len(pairs) < len(layers):
        total = _whole(layers)
        if method == "concat" or total.dim() == 1:
            return Difference(total), 0.0, float(total.double().square().sum())
        spectrum = factors.of_matrix(total, rank)
        return spectrum.cut(rank), spectrum.lost(rank), spectrum.energy
    joined = factors.stacked(pairs)
    spectrum = factors.of_factors(joined)
    if method == "svd":
        return spectrum.cut(rank), spectrum.lost(rank), spectrum.energy
    most = min(shape[0], joined.down[0].numel())
    return (spectrum.cut(most) if joined.rank > most else joined), 0.0, spectrum.energy


def _whole(layers: Sequence[tuple[Layer, float]]) -> "Tensor":
    import torch

    total = torch.zeros(tuple(layers[0][0].shape))
    for layer, weight in layers:
        assert not isinstance(layer, Decomposed)
        total.add_(layer.delta(), alpha=weight)
    return total
