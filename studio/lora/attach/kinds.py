"""The kinds of network by name: how PEFT is told to make the layers, and how their weights become a layer of an adapter and back."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from studio.config.training.network import Network
from studio.lora.adapter import Layer
from studio.lora.attach import adaptive, hadamard, kronecker, lowrank
from studio.lora.attach.choice import Place


class Kind(Protocol):
    """One kind of network; a module of this package each. `module` is PEFT's layer around a module of the base."""

    def config(self, network: Network, places: Sequence[Place], pattern: str) -> Any:
        """PEFT's configuration for the modules whose names the pattern fully matches."""
        ...

    def settle(self, module: Any, place: Place) -> None:
        """Make a fresh layer what this house means by its rank and alpha."""
        ...

    def collect(self, module: Any) -> Layer:
        """The layer as it stands, a copy on the CPU in fp32."""
        ...

    def fill(self, module: Any, layer: Layer | None, path: str) -> None:
        """Give the module the weights of a layer; None leaves it without effect. Raises FormatError if the layer does not fit."""
        ...


KINDS: Mapping[str, Kind] = {
    "lora": lowrank.LoRA(),
    "dora": lowrank.DoRA(),
    "loha": hadamard.LoHa(),
    "lokr": kronecker.LoKr(),
    "adalora": adaptive.AdaLoRA(),
}
