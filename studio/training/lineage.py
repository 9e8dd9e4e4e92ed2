"""Whether a run may go on from a checkpoint: what its steps depend on, compared, and listed where it differs."""

from collections.abc import Mapping
from typing import Any

import torch

from studio.config import TrainConfig
from studio.data.cache import identity
from studio.errors import SettingsError
from studio.families.base import Base, Part
from studio.training.checkpoint import State
from studio.training.plan import FREE, Plan

ENGINE = 2  # raise it when the same settings, base and pictures would take other steps than before
PARTS: Mapping[Part, str] = {"denoiser": "the base's denoiser", "vae": "the base's VAE", "text": "the base's text encoders"}
NAMES = frozenset({"base", "vae", "encoders"})  # names of files, whose contents are compared


def origin(base: Base, family: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What the steps of a run depend on beside its settings and pictures, as JSON values."""
    hashes = {part: identity(base, family, part) for part in PARTS}
    return {"engine": ENGINE, "base": hashes, "precision": _bare(dtype), "device": device.type, "torch": torch.__version__.partition("+")[0]}


def differences(made: Plan, now: Mapping[str, Any], before: State) -> list[str]:
    """What differs between a run as planned and the one of a checkpoint, so that going on would not equal never having stopped."""
    values, fields = made.config.model_dump(mode="json"), TrainConfig.model_fields
    was = {name: before.settings.get(name, fields[name].get_default()) for name in values}  # a newer setting had its default then
    hashes = before.origin.get("base", {})
    free = FREE | (NAMES if hashes else frozenset())
    found = [f"{name} {was[name]!r} -> {values[name]!r}" for name in values if name not in free and was[name] != values[name]]
    if made.images_hash != before.images:
        found.append("the pictures or captions")
    found += [f"{words} (its files are others now)" for part, words in PARTS.items() if part in hashes and hashes[part] != now["base"][part]]
    for name, words in (("precision", "number format"), ("engine", "way of taking steps")):
        if name in before.origin and before.origin[name] != now[name]:
            found.append(f"the {words} {before.origin[name]} -> {now[name]}")
    return found


def refuse(made: Plan, now: Mapping[str, Any], before: State) -> None:
    """Raise SettingsError naming everything that differs, unless the run can go on."""
    changed = differences(made, now, before)
    if changed:
        raise SettingsError(f"this run cannot be resumed with other settings: {'; '.join(changed)}; put them back, or fork it: a new run from its weights")
    if made.steps < before.step:
        raise SettingsError(f"steps {made.steps} is less than the {before.step} this run has done; ask for more")


def notes(now: Mapping[str, Any], before: State) -> list[str]:
    """What differs and lets the run go on, though not to the same bits."""
    moved = [f"{name} {before.origin[name]} -> {now[name]}" for name in ("device", "torch") if before.origin.get(name, now[name]) != now[name]]
    return [f"the run goes on with another {' and '.join(moved)}: it follows the unbroken run, and does not equal it bit for bit"] if moved else []


def forked(made: Plan, now: Mapping[str, Any], before: State) -> str:
    """What to say of a new run that starts from the weights of a checkpoint."""
    changed = differences(made, now, before)
    return f"a new run from the weights of step {before.step} of another; what differs from it: {'; '.join(changed) or 'nothing'}"


def _bare(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
