"""Adapters in, adapters or checkpoints out: merge, resize, extract, bake. Each is a generator of events that returns what it made."""

import time
from dataclasses import dataclass, field
from typing import Any

from studio.events import Loading
from studio.lora.adapter import Adapter

SECONDS = 0.2  # between two words about progress


@dataclass(frozen=True)
class Made:
    """An adapter and what is to be said about it: figures, and sentences that a person should read."""

    adapter: Adapter
    report: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass
class Progress:
    """Counts layers; tells of the first, of the last, and now and then of one between."""

    phase: str
    total: int
    done: int = 0
    _told: float = field(default=float("-inf"), repr=False)

    def step(self) -> list[Loading]:
        """Nothing or one event, for `yield from`."""
        self.done += 1
        now = time.monotonic()
        if self.done < self.total and now - self._told < SECONDS:
            return []
        self._told = now
        return [Loading(phase=self.phase, done=self.done, total=self.total)]
