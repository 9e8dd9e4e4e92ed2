"""Steps that were taken, until they are told of."""

from dataclasses import dataclass
from typing import Protocol

from studio.training.step import Outcome


class Awaited(Protocol):
    def outcome(self) -> Outcome:
        """What the step came to; waits for it if need be."""
        ...


@dataclass(frozen=True)
class Known:
    """What a step came to, known at once."""

    found: Outcome

    def outcome(self) -> Outcome:
        return self.found


@dataclass(frozen=True)
class Ahead:
    """A step that was taken."""

    step: int
    late: Awaited
    rate: float
    seconds: float


@dataclass(frozen=True)
class Taken:
    """What is told of a step."""

    step: int
    outcome: Outcome
    rate: float
    seconds: float
