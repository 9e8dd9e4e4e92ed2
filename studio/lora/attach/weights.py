"""What the kinds of network share: the name of the adapter, weights in and out, words for what does not fit."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from studio.errors import FormatError
from studio.lora.adapter import Decomposed, Difference, Hadamard, Kronecker, Layer, LowRank

if TYPE_CHECKING:
    from torch import Tensor

    from studio.lora.attach.choice import Place

NAME = "trained"  # PEFT keeps adapters in a ModuleDict, where "train" is taken
TITLES = {LowRank: "lora", Decomposed: "dora", Hadamard: "loha", Kronecker: "lokr", Difference: "full difference"}


def taken(tensor: "Tensor") -> "Tensor":
    """A copy on the CPU in fp32."""
    return tensor.detach().to("cpu", copy=True).float()


def ranks(places: "Sequence[Place]", rank: int, alpha: float) -> dict[str, Any]:
    """PEFT's tables of the modules that differ from the run's own rank and alpha, by exact names."""
    escaped = {place: "^" + place.name.replace(".", r"\.") for place in places}
    return {
        "rank_pattern": {escaped[place]: place.rank for place in places if place.rank != rank},
        "alpha_pattern": {escaped[place]: place.alpha for place in places if place.alpha != alpha},
    }


def other_kind(path: str, layer: Layer, wanted: str) -> FormatError:
    title = TITLES[type(layer)]
    way_out = f"set network to {title}" if title in ("lora", "dora", "loha", "lokr") else "resize the file to a plain LoRA first"
    return FormatError(f"{path}: is a {title} layer, which a network of kind {wanted} cannot go on from; {way_out}")


def other_size(path: str, layer: Layer, rank: int) -> FormatError:
    return FormatError(f"{path}: rank {layer.rank}, shape {list(layer.shape)} does not fit rank {rank} here; set rank to {layer.rank} or resize the LoRA")
