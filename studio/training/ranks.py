"""AdaLoRA's part of a checkpoint: the file of the adapter holds the ranks that are left, folded; this is what goes on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studio.lora.attach import Allocator
from studio.training.step import Weights


@dataclass(frozen=True)
class Ranks:
    """Raw weights and the allocator's memory of what mattered."""

    weights: Weights
    allocator: Allocator

    def tensors(self) -> Mapping[str, Tensor]:
        return {f"weights/{name}": tensor for name, tensor in self.weights.named().items()} | self.allocator.memory()

    def entries(self) -> Mapping[str, Any]:
        return {"steps": self.allocator.steps}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], entries: Mapping[str, Any]) -> None:
        named = self.weights.named()
        for name, weight in named.items():
            weight.copy_(tensors[f"weights/{name}"])
        self.weights.publish()
        self.allocator.recall({name: tensor for name, tensor in tensors.items() if not name.startswith("weights/")}, entries["steps"], named)
