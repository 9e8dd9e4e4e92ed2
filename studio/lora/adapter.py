"""The adapter as a thing of its own: named layers, each able to give the difference it makes to its base weight.

Module paths are diffusers' names behind the pipeline part: `unet.down_blocks.1...to_q`, `transformer.transformer_blocks.0...`,
`text_encoder.text_model.encoder.layers.0...` (`text_model` always, whatever the installed transformers calls the module).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """down (r, in[, k, k]), up (out, r[, 1, 1]); delta = alpha / r * up @ down."""

    down: "Tensor"
    up: "Tensor"
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the base weight: (out, in) or (out, in, k, k)."""
        return (self.up.shape[0], *self.down.shape[1:])

    def delta(self) -> "Tensor":
        """The full difference in fp32, shaped like the base weight."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (product * (self.alpha / self.rank)).reshape(self.shape)


@dataclass(frozen=True)
class Difference:
    """A full difference of the base weight, as `.diff` keys store it."""

    weight: "Tensor"
    alpha: float = 1.0

    @property
    def rank(self) -> int:
        return min(self.weight.shape[0], self.weight[0].numel())

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)

    def delta(self) -> "Tensor":
        return self.weight.float()


Layer = LowRank | Difference


@dataclass(frozen=True)
class Adapter:
    """A trained LoRA in memory, independent of any file format."""

    family: str
    layers: Mapping[str, Layer]
    metadata: Mapping[str, str] = field(default_factory=dict)
