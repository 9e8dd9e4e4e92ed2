"""Where a run begins: at nothing, at a LoRA's weights, or at the last whole checkpoint of itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from studio.config import TrainConfig
from studio.data.images import ImageSet
from studio.families.base import Base, Facts
from studio.families.devices import resolve_dtype
from studio.training import checkpoint, lineage
from studio.training.plan import Plan, plan, resumable


@dataclass(frozen=True)
class Start:
    plan: Plan
    origin: Mapping[str, Any]  # what the steps depend on, see lineage.py
    dtype: torch.dtype  # of the frozen base
    resumed: Path | None  # the checkpoint it goes on from
    told: tuple[str, ...]  # what to know about it


def settle(config: TrainConfig, base: Base, facts: Facts, images: ImageSet, device: torch.device) -> Start:
    """Everything that is known before anything is loaded. Raises InputError if settings, pictures or checkpoint do not fit, RunError if none is whole."""
    wanted = resumable(config)
    stored, wrong = checkpoint.usable(wanted) if wanted else (None, [])
    state = checkpoint.state(stored.path) if stored else None
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
    return Start(made, origin, dtype, stored.path if stored else None, tuple(told))
