"""An adapter with smaller ranks."""

import dataclasses
from collections.abc import Generator

from studio.errors import FormatError
from studio.events import Loading
from studio.lora.adapter import Adapter, Decomposed, Difference, Layer, LowRank
from studio.lora.tools import Made, Progress, factors, origin


def resize(adapter: Adapter, name: str, rank: int = 0, energy: float = 0.0) -> Generator[Loading, None, Made]:
    """The best layers of at most `rank`, or in each layer the smallest rank that keeps the share `energy` of its squared Frobenius norm.

    Ranks never grow. LoHa, LoKr and whole differences become plain LoRA layers; of DoRA, the low-rank part is cut.
    """
    if bool(rank) == bool(energy):
        raise FormatError("resize takes a rank or an energy, one of them")
    if not adapter.layers:
        raise FormatError(f"{name}: holds new words alone, and no layers that could be resized")
    progress = Progress("resizing", len(adapter.layers))
    layers: dict[str, Layer] = {}
    told: dict[str, dict[str, float]] = {}
    lost = whole = 0.0
    for path in sorted(adapter.layers):
        layer = adapter.layers[path]
        layers[path], away, all_of_it = _cut(layer, rank, energy)
        told[path] = {"rank": layers[path].rank, "before": layer.rank, "residual": factors.share(away, all_of_it)}
        lost, whole = lost + away, whole + all_of_it
        yield from progress.step()
    notes = [] if any(row["rank"] < row["before"] for row in told.values()) else ["no layer got smaller: the LoRA has no higher ranks than asked for"]
    words = f"Resized to {f'rank {rank}' if rank else f'{energy:g} of the energy'}: {origin.title(adapter.metadata, name)}"
    metadata = origin.of_adapter(adapter.family, name, [(name, adapter.metadata)], words, rank)
    report = {"rank": rank or None, "energy": energy or None, "residual": factors.share(lost, whole), "layers": told}
    return Made(dataclasses.replace(adapter, layers=layers, metadata=metadata), report, tuple(notes))


def _cut(layer: Layer, rank: int, energy: float) -> tuple[Layer, float, float]:
    """The smaller layer, and the squared norms of what was lost and of the whole."""
    if isinstance(layer, Decomposed):
        inner, lost, whole = _cut(layer.layer, rank, energy)
        assert not isinstance(inner, Decomposed)
        return dataclasses.replace(layer, layer=inner), lost, whole
    if isinstance(layer, LowRank):
        spectrum = factors.of_factors(layer)
    else:
        delta = layer.delta()
        if delta.dim() == 1:  # a bias has no rank
            return Difference(delta), 0.0, float(delta.double().square().sum())
        spectrum = factors.of_matrix(delta, rank or min(delta.flatten(1).shape))
    wanted = rank or spectrum.rank_for(energy)
    if isinstance(layer, LowRank) and wanted >= layer.rank:
        return layer, 0.0, spectrum.energy
    return spectrum.cut(wanted), spectrum.lost(wanted), spectrum.energy
