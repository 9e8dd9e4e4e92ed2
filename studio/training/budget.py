"""How much memory a run may take here, what it was planned to take and what it took, and whether steps slow down as if memory had run over."""

import statistics
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch

from studio import families
from studio.config import TrainConfig
from studio.errors import RunError
from studio.families.base import Base
from studio.footprint import choice
from studio.footprint.choice import GB, Choice
from studio.footprint.estimate import DRIVER, Card, Job
from studio.training.plan import Plan

CONTEXT = 650_000_000  # bytes of the driver's that are taken once torch has looked at a card (NVIDIA H100, torch 2.11+cu130)
WARM, SETTLED, LAST = 3, 20, 5  # steps that do not count, that settle the pace, and that are compared with it
SLOW = 3.0  # times the settled pace: a card that runs over into main memory is slower by more than that
OFF = 0.1  # share by which a run may differ from its plan before it is said


def settle(made: Plan, base: Base, device: torch.device, kept_format: str | None) -> Choice:
    """The plan for this machine. kept_format: of the base, where a run goes on with it.

    Raises RunError if the run cannot fit a GPU whatever is left open.
    """
    config = made.config if kept_format is None else made.config.model_copy(update={"base_format": kept_format})
    crops = [one.crop for one in made.shown] + [want.crop for want in made.held]
    width, height = max((crop.bucket for crop in crops), key=lambda bucket: bucket[0] * bucket[1])
    job = Job(config, base, families.get(base.family), card(config, device), height, width, pictures=len(made.everything()))
    found = choice.choose(job)
    training = found.footprint.phases["training"]
    surely = sum(training.values()) - training.get("allocator", 0)
    if device.type == "cuda" and surely > found.card.budget > 0:
        raise RunError(found.notes[0])
    return found


def card(config: TrainConfig, device: torch.device) -> Card:
    """What of this machine's memory the run may take: what is free, or less where the settings say so."""
    host = psutil.virtual_memory().available
    if device.type != "cuda":
        wanted = int((config.memory_budget or 0) * GB)
        return Card(False, min(wanted or host, host))
    free, total = torch.cuda.mem_get_info(device)
    # Processes of one run must settle the same, so that they look at the cards' size and not at what is free on each.
    there = total if config.processes > 1 else free + torch.cuda.memory_reserved(device) + CONTEXT
    wanted = int((config.memory_budget or 0) * GB)
    return Card(True, min(wanted or there, there), host)


@contextmanager
def capped(config: TrainConfig, device: torch.device, planned: Choice) -> Iterator[None]:
    """Within, torch takes no more of the card than the settings allow; without memory_budget as much as there is."""
    if device.type != "cuda" or not config.memory_budget:
        yield
        return
    # Unlike most of torch's functions this one wants the number of the card, where "cuda" alone has none.
    number = torch.cuda.current_device() if device.index is None else device.index
    total = torch.cuda.get_device_properties(number).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, (planned.card.budget - DRIVER) / total)), number)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, number)


def begin(device: torch.device) -> None:
    """From here on the peak is that of the training itself."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def taken(planned: Choice, device: torch.device) -> dict[str, Any]:
    """The measured peak of the training beside the planned one, both as torch reserves memory; nothing where nobody measures."""
    if device.type != "cuda":
        return {}
    training = planned.footprint.phases["training"]
    wanted = sum(training.values()) - training.get("driver", 0)
    return {
        "peak_vram_bytes": torch.cuda.max_memory_allocated(device),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
        "planned_reserved_bytes": wanted,
    }


def differs(result: dict[str, Any]) -> str:
    """What to say where the run took more than was planned; empty if it did not."""
    wanted, had = result.get("planned_reserved_bytes", 0), result.get("peak_reserved_bytes", 0)
    if not wanted or had <= wanted * (1 + OFF):
        return ""
    return f"the training took {had / GB:.1f} GB at its peak and {wanted / GB:.1f} GB were planned; the next run like it may need a smaller batch or resolution"


@dataclass
class Pace:
    """Tells once when steps slow down for good."""

    seconds: list[float] = field(default_factory=list)
    last: deque[float] = field(default_factory=lambda: deque(maxlen=LAST))
    told: bool = False

    def seen(self, seconds: float) -> str:
        """What to say after a step; empty but once."""
        if len(self.seconds) < WARM + SETTLED:
            self.seconds.append(seconds)
            return ""
        self.last.append(seconds)
        settled, now = statistics.median(self.seconds[WARM:]), statistics.median(self.last)
        if self.told or len(self.last) < LAST or now <= SLOW * settled:
            return ""
        self.told = True
        return (
            f"steps take {now:.2f} s now and took {settled:.2f} s before: either another program uses the device, or its memory is full and the driver "
            "moves it to main memory; close other programs, or set memory_budget to less than what is free"
        )
