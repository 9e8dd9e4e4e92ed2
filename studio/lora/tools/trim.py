"""An adapter at every smaller size: singular values once, then any share of them."""

import dataclasses
from dataclasses import dataclass

from studio.errors import FormatError
from studio.lora.adapter import Adapter, Decomposed, Hadamard, Kronecker, LowRank
from studio.lora.tools import factors
from studio.lora.tools.factors import Spectrum

KINDS = {Hadamard: "LoHa", Kronecker: "LoKr"}


@dataclass(frozen=True)
class Trim:
    """Low-rank layers, also those within a DoRA, with their spectra by path."""

    adapter: Adapter
    spectra: dict[str, Spectrum]

    @classmethod
    def of(cls, adapter: Adapter) -> "Trim":
        """Raises FormatError for layers of which no rank can be taken away."""
        found = {}
        for path, layer in adapter.layers.items():
            inner = layer.layer if isinstance(layer, Decomposed) else layer
            if not isinstance(inner, LowRank):
                kind = KINDS.get(type(inner), "whole differences")
                raise FormatError(f"{path} and others are {kind}, which have no ranks to trim: make a plain LoRA of them first (resize --energy 0.999)")
            found[path] = factors.of_factors(inner)
        return cls(adapter, found)

    def keeping(self, energy: float) -> Adapter:
        """Each layer at the smallest rank that keeps this share of its squared Frobenius norm; layers that stay as large stay as they are."""
        layers = dict(self.adapter.layers)
        for path, layer in self.adapter.layers.items():
            spectrum = self.spectra[path]
            rank = spectrum.rank_for(energy)
            if rank < layer.rank:
                cut = spectrum.cut(rank)
                layers[path] = dataclasses.replace(layer, layer=cut) if isinstance(layer, Decomposed) else cut
        return dataclasses.replace(self.adapter, layers=layers)

    def residual(self, trimmed: Adapter) -> float:
        """Relative Frobenius norm, over all layers, of what was taken away."""
        lost = sum(spectrum.lost(trimmed.layers[path].rank) for path, spectrum in self.spectra.items())
        return factors.share(lost, sum(spectrum.energy for spectrum in self.spectra.values()))


def size(adapter: Adapter) -> int:
    """Numbers in the factors and lengths of all layers."""
    from studio.lora.adapter import tensors

    return sum(tensor.numel() for layer in adapter.layers.values() for tensor in tensors(layer))
