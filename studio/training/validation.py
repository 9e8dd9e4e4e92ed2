"""How good a run is on pictures it never trains on: the same noise at the same levels each time, so that only the weights differ.

Every picture is measured in the middle of LEVELS equal shares of the run's own distribution of noise levels. Nothing is drawn
from a generator that training uses, and nothing is left behind: a run with validation takes the steps of one without.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from studio.data.cache import Want
from studio.errors import RunError
from studio.families.base import Components
from studio.training import draws
from studio.training.draws import Draw

LEVELS = 9
RESAMPLES, SHARE = 2000, 0.95  # of the bootstrap


@dataclass(frozen=True)
class Measured:
    """losses: (pictures, LEVELS), least noise first."""

    names: tuple[str, ...]
    losses: Tensor

    @property
    def loss(self) -> float:
        return float(self.losses.mean())

    def by_picture(self) -> dict[str, float]:
        return {name: round(float(loss), 6) for name, loss in zip(self.names, self.losses.mean(1), strict=True)}

    def by_level(self) -> list[float]:
        return [round(float(loss), 6) for loss in self.losses.mean(0)]

    def interval(self) -> tuple[float, float] | None:
        """Where the mean over all such pictures lies with 95 % confidence; None with one picture."""
        return interval(self.losses.mean(1))


def measure(held: Sequence[Want], seed: int, at_once: int, losses: Callable[[Sequence[tuple[Want, Draw]]], Tensor]) -> Measured:
    """The losses of held-out pictures. `losses` gives those of pictures of one size (B,); `at_once` of them fit into memory."""
    rows = []
    for want in held:
        chosen = [(want, draws.fixed(seed, want.picture.sha256, k, (k + 0.5) / LEVELS)) for k in range(LEVELS)]
        parts = [losses(chosen[start : start + at_once]) for start in range(0, LEVELS, at_once)]
        rows.append(torch.cat(parts).double().cpu())
    return Measured(tuple(want.picture.name for want in held), torch.stack(rows))


def interval(values: Tensor) -> tuple[float, float] | None:
    """Percentile bootstrap of the mean of independent values (n,); None for fewer than two. The same values give the same interval."""
    if len(values) < 2:
        return None
    picks = torch.randint(len(values), (RESAMPLES, len(values)), generator=torch.Generator().manual_seed(0))
    means = values.double()[picks].mean(1)
    low, high = torch.quantile(means, torch.tensor([(1 - SHARE) / 2, (1 + SHARE) / 2], dtype=torch.float64)).tolist()
    return low, high


@contextmanager
def evaluating(c: Components) -> Iterator[None]:
    """Evaluation mode of all loaded parts, without gradients; mode and random state are put back afterwards."""
    before = {part: part.training for part in c.parts.values() if isinstance(part, nn.Module)}
    with torch.no_grad(), torch.random.fork_rng([c.device] if c.device.type == "cuda" else []):
        try:
            for part in before:
                part.eval()
            yield
        finally:
            for part, training in before.items():
                part.train(training)


@dataclass
class Watch:
    """The best so far, and how long ago it was. Carried by checkpoints."""

    best_step: int = 0  # 0: none yet
    best_loss: float = 0.0
    stale: int = 0  # looks since then

    def judge(self, step: int, loss: float, *, counts: bool) -> bool:
        """Whether this is the best yet. counts: whether a look without a new best uses up patience."""
        if loss == loss and (not self.best_step or loss < self.best_loss):
            self.best_step, self.best_loss, self.stale = step, loss, 0
            return True
        self.stale += counts
        return False

    def tensors(self) -> Mapping[str, Tensor]:
        return {}

    def entries(self) -> Mapping[str, Any]:
        return {"best_step": self.best_step, "best_loss": self.best_loss, "stale": self.stale}

    def restore(self, tensors: Mapping[str, Tensor], entries: Mapping[str, Any]) -> None:
        if not entries:
            raise RunError("the checkpoint does not know the best held-out loss so far; start a new run from its LoRA")
        self.best_step, self.best_loss, self.stale = entries["best_step"], entries["best_loss"], entries["stale"]
