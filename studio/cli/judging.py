"""Held-out losses in a terminal: the curve of a run, and which of its checkpoints is best."""

from collections.abc import Mapping, Sequence
from typing import Any

from studio.cli.output import listing
from studio.events import Validation

BAR = 32  # characters of the longest bar


def curve(looks: Sequence[Validation]) -> int:
    """A line for each look at the held-out pictures: loss, interval, loss by noise level, and where it lies between the lowest and the highest."""
    if not looks:
        return 0
    low, high = min(look.low or look.loss for look in looks), max(look.high or look.loss for look in looks)
    best = [look.step for look in looks if look.best]
    rows = [
        {
            "step": look.step,
            "loss": f"{look.loss:.4f}",
            "between": _between(look.low, look.high),
            "levels": _levels(look, looks[0]),
            "curve": _bar(look.loss, look.low, look.high, (low, high)) + (" best" if best and look.step == best[-1] else ""),
        }
        for look in looks
    ]
    print()
    columns = {"STEP": "step", "HELD-OUT LOSS": "loss", "95 % INTERVAL": "between", "BY NOISE": "levels"}
    return listing(rows, {**columns, f"{low:.4f} TO {high:.4f}": "curve"}, as_json=False, empty="")


def _levels(look: Validation, first: Validation) -> str:
    """Loss of the least, the middle and the most noise, each as a share of what it was at the first look."""
    third = len(look.by_level) // 3
    if not third or len(first.by_level) != len(look.by_level):
        return ""
    parts = [slice(0, third), slice(third, -third), slice(-third, None)]
    return " ".join(f"{sum(look.by_level[part]) / (sum(first.by_level[part]) or 1):4.0%}" for part in parts)


def verdict(result: Mapping[str, Any]) -> int:
    """Every checkpoint with its loss, and which is best."""
    rows = [
        {
            "step": row["step"],
            "loss": f"{row['loss']:.4f}",
            "between": _between(*(row["interval"] or (None, None))),
            "verdict": "best" if row["step"] == result["best_step"] else "as good as the best" if row["as_good"] else f"worse by {_between(*row['worse'])}",
        }
        for row in result["checkpoints"]
    ]
    listing(rows, {"STEP": "step", "HELD-OUT LOSS": "loss", "95 % INTERVAL": "between", "VERDICT": "verdict"}, as_json=False, empty="")
    print(f"best: step {result['best_step']}, measured by {result['held_out']} pictures")
    return 0


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.4f} to {high:.4f}"


def _bar(loss: float, low: float | None, high: float | None, of: tuple[float, float]) -> str:
    """The interval as dashes with the loss as a dot in it."""
    start, width = of[0], of[1] - of[0] or 1.0

    def place(value: float) -> int:
        return round((value - start) / width * (BAR - 1))

    cells = [" "] * BAR
    if low is not None and high is not None:
        cells[place(low) : place(high) + 1] = "-" * (place(high) - place(low) + 1)
    cells[place(loss)] = "o"
    return "".join(cells).rstrip()
