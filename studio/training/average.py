"""An exponential moving average of the trained weights (EMA), which previews, checkpoints' adapters and the result then show."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from studio.training.step import Weights


class Average:
    """A shadow of the exact weights in fp32 that follows them slowly.

    After the n-th applied step it moves by 1 - min(decay, (1 + n) / (10 + n)) of the way towards the weights: without that
    warm-up a short run would mostly average its beginning. Source of the warm-up: TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, weights: Weights, decay: float):
        self.weights, self.decay = weights, decay
        self.shadow = [p.detach().clone() for p in weights.exact]
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Follow the weights after a step that was applied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.shadow, self.weights.exact, 1 - decay)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within, the layers run with the average, in their own number format; afterwards they hold the same bits as before."""
        before = [p.detach().clone() for p in self.weights.live]
        self._fill(self.shadow)
        try:
            yield
        finally:
            self._fill(before)

    @contextmanager
    def exposed(self) -> Iterator[None]:
        """Within, the layers hold the average in fp32: for reading it off, not for running."""
        before = [p.data for p in self.weights.live]
        for average, live in zip(self.shadow, self.weights.live, strict=True):
            live.data = average
        try:
            yield
        finally:
            for data, live in zip(before, self.weights.live, strict=True):
                live.data = data

    def tensors(self) -> Mapping[str, Tensor]:
        """The average, and the weights themselves, which the checkpoint's adapter does not hold."""
        held = {f"average/{name}": tensor for name, tensor in zip(self.weights.names, self.shadow, strict=True)}
        return held | {f"weights/{name}": tensor for name, tensor in zip(self.weights.names, self.weights.exact, strict=True)}

    def entries(self) -> Mapping[str, Any]:
        return {"updates": self.updates}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], entries: Mapping[str, Any]) -> None:
        for name, average, exact in zip(self.weights.names, self.shadow, self.weights.exact, strict=True):
            average.copy_(tensors[f"average/{name}"])
            exact.copy_(tensors[f"weights/{name}"])
        self.weights.publish()
        self.updates = entries["updates"]

    @torch.no_grad()
    def _fill(self, values: list[Tensor]) -> None:
        torch._foreach_copy_(self.weights.live, values)
        self.weights.show()
