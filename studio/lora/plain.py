"""Any adapter as a plain LoRA, which every program loads alike: the honest way to give a DoRA away.

A DoRA's difference depends on the base and has full rank, so a LoRA of it is for that base only and leaves a residual, which is told.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from studio.errors import FormatError
from studio.lora.adapter import Adapter, Layer, LowRank, delta, needs_base
from studio.lora.tools import factors

if TYPE_CHECKING:
    from torch import Tensor


def plain(adapter: Adapter, weights: "Mapping[str, Tensor]", rank: int) -> tuple[Adapter, dict[str, float]]:
    """The adapter with low-rank layers only, and for each layer that was another kind the share of its Frobenius norm that was lost.

    weights: the base's own weights by module path, needed where a layer is DoRA. rank: of the layers that are made anew.
    Raises FormatError for differences of biases and norms, which have no low-rank form.
    """
    layers: dict[str, Layer] = {}
    residuals: dict[str, float] = {}
    for path, layer in adapter.layers.items():
        if isinstance(layer, LowRank):
            layers[path] = layer
            continue
        if len(layer.shape) < 2:
            raise FormatError(f"{path}: is the difference of a bias or norm, which a plain LoRA cannot carry; export as kohya instead")
        if needs_base(layer) and path not in weights:
            raise FormatError(f"{path}: is a DoRA layer, whose difference depends on the base; name the base model it is for")
        difference = delta(layer, weights[path]) if needs_base(layer) else layer.delta()  # type: ignore[call-arg]
        spectrum = factors.of_matrix(difference, rank)
        layers[path] = spectrum.cut(rank)
        residuals[path] = factors.share(spectrum.lost(rank), spectrum.energy)
    return dataclasses.replace(adapter, layers=layers), residuals
