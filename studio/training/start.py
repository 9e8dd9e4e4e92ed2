"""Where a run begins: at nothing, at a LoRA's weights, or at the last whole checkpoint of itself."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from studio.config import TrainConfig
from studio.data.images import ImageSet
from studio.families.base import Base, Facts
from studio.families.devices import resolve_dtype
from studio.footprint.choice import Choice
from studio.training import budget, checkpoint, lineage
from studio.training.plan import Plan, plan, resumable


@dataclass(frozen=True)
class Start:
    plan: Plan
    origin: Mapping[str, Any]  # what the steps depend on, see lineage.py
    dtype: torch.dtype  # of the frozen base
    resumed: Path | None  # the checkpoint it goes on from
    told: tuple[str, ...]  # what to know about it
    memory: Choice  # how it is to fit the device


def settle(config: TrainConfig, base: Base, facts: Facts, images: ImageSet, device: torch.device) -> Start:
    """Everything that is known before anything is loaded. Raises InputError if settings, pictures or checkpoint do not fit, RunError if none is whole."""
    wanted = resumable(config)
    stored, wrong = checkpoint.usable(wanted) if wanted else (None, [])
    state = checkpoint.state(stored.path) if stored else None
    kept = _format_of(state)
    if kept and config.base_format == "auto":
        config = config.model_copy(update={"base_format": kept})
    made = plan(config, base, facts, images, state)
    dtype = resolve_dtype(made.config.precision, device)
    origin = lineage.origin(base, facts.name, dtype, device)
    told = list(made.warnings)
    source = Path(config.start_from) if config.start_from else None
    if state is not None:
        lineage.refuse(made, origin, state)
        told += [f"{'; '.join(wrong)}: the run goes on from step {state.step} instead"] if wrong else []
        told += lineage.notes(origin, state)
    elif source is not None and checkpoint.is_checkpoint(source.parent):
        told.append(lineage.forked(made, origin, checkpoint.state(source.parent)))
    chosen = budget.settle(made, base, device, "full" if kept == "auto" else None)
    made = replace(made, config=chosen.applied(made.config))
    return Start(made, origin, dtype, stored.path if stored else None, (*told, *chosen.notes), chosen)


def _format_of(state: checkpoint.State | None) -> str | None:
    """Number format of the base as the run that goes on had it, `auto` being the full one; None for a new run."""
    return None if state is None else str(state.settings.get("base_format", "auto"))
