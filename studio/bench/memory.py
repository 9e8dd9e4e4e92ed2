"""Whole runs within a budget of memory: what the plan chose, what it planned and what was taken, beside the run that may take everything."""

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from studio import config as settings
from studio.bench import imagined, report
from studio.bench.cases import Spec
from studio.bench.fullsize import NoRequests, noise_pictures
from studio.config import TrainConfig
from studio.data.cache import release
from studio.data.images import read_set
from studio.errors import StudioError
from studio.events import Finished, Loading, Started, Step, Warned
from studio.families import get, sources
from studio.families.base import Base
from studio.training.loop import train

GB = 1e9
SETTLED = 3  # steps before those whose time counts
PICTURES = 2
COLUMNS: Mapping[str, str] = {
    "family": "family",
    "px": "resolution",
    "batch": "batch",
    "budget GB": "budget",
    "base": "base_format",
    "recomputed": "recomputed",
    "waiting": "block_offload",
    "steps": "speed",
    "planned GB": "planned_gb",
    "taken GB": "taken_gb",
    "off by %": "off_percent",
    "encoding GB": "encoding_gb",
    "s/step": "seconds",
    "x all memory": "times_free",
}


@dataclass(frozen=True)
class Case:
    """budget in GB; 0 is all there is."""

    family: str
    resolution: int
    batch: int
    precision: str
    budget: float

    @property
    def key(self) -> str:
        return "/".join(["memory", *(str(value) for value in asdict(self).values())])


def table(spec: Spec, out: Path | None, device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for every family, resolution, batch and budget; those that `out` holds already as they stand there."""
    found = report.finished(out)
    for family in spec.families:
        with ExitStack() as stack:
            base = stack.enter_context(imagined.base(family)) if spec.weights == "random" else _named(family, spec.weights)
            for case in _cases(spec, family):
                yield found.get(case.key) or _row(case, base, spec, device)


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in columns, for people."""
    free = {_place(row): row["seconds"] for row in rows if row.get("seconds") and not row["budget"]}
    rows = [{**row, "times_free": round(row["seconds"] / free[_place(row)], 2)} if row.get("seconds") and _place(row) in free else row for row in rows]
    return report.columns(rows, COLUMNS) if rows else ""


def rehearse(base: Base, config: TrainConfig, size: tuple[int, int], device: torch.device, pictures: int = PICTURES) -> dict[str, Any]:
    """What a run of so few steps on pictures of that size (width, height) plans and takes; all is as in the run itself but the pictures."""
    figures: dict[str, Any] = {"warned": []}
    seconds: list[float] = []
    release(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with tempfile.TemporaryDirectory() as folder:
        images = read_set(noise_pictures(Path(folder) / "set", pictures, *size))
        work = Path(folder)
        for event in train(config, base, images, work / "job", work / "cache", requests=NoRequests(), preview=None, device=device.type):
            if isinstance(event, Loading) and event.phase.startswith("Loading") and device.type == "cuda":
                figures["encoding_gb"] = round(torch.cuda.max_memory_reserved(device) / GB, 2)
            elif isinstance(event, Started):
                figures |= _chosen(event.facts)
            elif isinstance(event, Step):
                seconds.append(event.seconds)
            elif isinstance(event, Warned):
                figures["warned"].append(event.message)
            elif isinstance(event, Finished):
                figures |= _taken(event.result)
    figures["seconds"] = round(statistics.median(seconds[SETTLED:] or seconds), 4)
    return figures


def _row(case: Case, base: Base, spec: Spec, device: torch.device) -> dict[str, Any]:
    row = {"key": case.key, "task": "memory", **asdict(case), "weights": spec.weights, "rank": spec.rank}
    values: dict[str, Any] = {"base": base.name, "images": "noise", "rank": spec.rank, "alpha": spec.rank, "seed": 1, "steps": SETTLED + spec.steps}
    values |= {"batch_size": case.batch, "resolution": case.resolution, "precision": case.precision, "save_every": 0}
    config = settings.build(TrainConfig, values | ({"memory_budget": case.budget} if case.budget else {}))
    try:
        side = case.resolution
        row |= rehearse(base, config, (side, side), device, max(PICTURES, case.batch))
    except (RuntimeError, StudioError) as error:
        row["error"] = " ".join(str(error).split())[:300]
    return row | {"machine": report.machine(device)}


def _cases(spec: Spec, family: str) -> Iterator[Case]:
    for precision in spec.precisions:
        for resolution in spec.resolutions:
            for batch in spec.batches:
                for budget in spec.budgets:
                    yield Case(family, resolution, batch, precision, budget)


def _named(family: str, weights: str) -> Base:
    return sources.find(get(family).facts.default_base if weights == "demo" else weights)


def _chosen(facts: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: facts[name] for name in ("base_format", "block_offload", "speed", "speed_reason", "memory_reason", "planned_parts")}
    return told | {"recomputed": facts["recomputed_share"], "planned_peak_gb": round(facts["planned_bytes"] / GB, 2)}


def _taken(result: Mapping[str, Any]) -> dict[str, Any]:
    if "peak_reserved_bytes" not in result:
        return {}
    planned, taken = result["planned_reserved_bytes"], result["peak_reserved_bytes"]
    found = {"planned_gb": round(planned / GB, 2), "taken_gb": round(taken / GB, 2), "off_percent": round(100 * (planned / taken - 1), 1)}
    return found | {"allocated_gb": round(result["peak_vram_bytes"] / GB, 2)}


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("family", "resolution", "batch", "precision"))
