"""Which checkpoint of a run is best: the held-out loss of every one, each with its interval, and which are as good as the best."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from studio import families
from studio.config import TrainConfig, build
from studio.config.training.newwords import NewWords
from studio.data.cache import Cache
from studio.data.images import ImageSet
from studio.errors import Cancelled, InputError, StudioError
from studio.events import Event, Finished, Loading, Started, Validation, Warned
from studio.families.base import Base
from studio.families.devices import resolve_dtype
from studio.lora import attach
from studio.training import budget, checkpoint
from studio.training.loop import Requests
from studio.training.plan import Plan, plan
from studio.training.run import Run
from studio.training.validation import Measured, evaluating, interval, measure

# What a run trains with and a look does not need: what it would average or start from is in the checkpoints.
# Weights are put in between looks, which recorded steps would not see.
PLAIN = {"ema_decay": None, "optimizer": "adamw", "optimizer_options": (), "lr_schedule": "constant", "start_from": None, "speed": "eager"}


@dataclass(frozen=True)
class Subject:
    """A run to evaluate. images: what it was trained on; others: pictures to measure by instead of those it held out."""

    config: TrainConfig
    base: Base
    checkpoints: Sequence[Path]
    images: ImageSet
    others: ImageSet | None = None


def evaluate(subject: Subject, folder: Path, cache: Path, *, requests: Requests, device: torch.device) -> Iterator[Event]:
    """Measure every checkpoint by the same pictures and noise. Raises InputError if there are no pictures the run has not seen."""
    family, base = families.get(subject.base.family), subject.base
    state = checkpoint.state(subject.checkpoints[-1])
    kept = {"base_format": state.settings.get("base_format", "auto")}  # what the LoRA was made for
    config = build(TrainConfig, {**subject.config.model_dump(), **PLAIN, **kept})
    made, told = measured_by(config, base, subject.images, subject.others, state.images)
    for message in told:
        yield Warned(message=message)
    store = Cache(cache, base, family, resolve_dtype(made.config.precision, device), device)
    yield from store.fill(made.everything())
    yield Loading(phase=f"Loading {base.title or base.name}")
    run = opened(made, store, folder)
    try:
        run.begin(None)
        yield Started(total=len(subject.checkpoints), facts={"held_out": len(made.held), "checkpoints": len(subject.checkpoints)})
        rows: dict[int, Measured] = {}
        for done, path in enumerate(subject.checkpoints, start=1):
            if "cancel" in requests.pending():
                raise Cancelled("evaluation was cancelled; the run is as it was")
            try:
                attach.restore(run.attached, checkpoint.adapter(path))
            except StudioError as error:
                yield Warned(message=f"{path.name} is left out: {error}")
                continue
            rows[checkpoint.step_of(path)] = found = _look(run)
            yield _told(checkpoint.step_of(path), found, rows)
            yield Loading(phase="measuring checkpoints", done=done, total=len(subject.checkpoints))
    finally:
        run.close()
    if not rows:
        raise InputError("no checkpoint of this run can be read")
    yield Finished(result=verdict(rows))


def opened(made: Plan, store: Cache, folder: Path) -> Run:
    """A run to measure with, fitted to the memory as one that trains."""
    chosen = budget.settle(made, store.base, store.device, "full" if made.config.base_format == "auto" else None)
    return Run(replace(made, config=chosen.applied(made.config)), store.family, store, folder, {}, chosen)


def verdict(rows: Mapping[int, Measured]) -> dict[str, Any]:
    """The best step, and every checkpoint's loss, interval and distance to the best.

    `worse` is where the mean difference to the best lies with 95 % confidence, picture by picture; a checkpoint whose interval
    holds 0 cannot be told apart from it.
    """
    best = min(rows, key=lambda step: rows[step].loss)
    least = rows[best].losses.mean(1)
    table = []
    for step, found in sorted(rows.items()):
        worse = None if step == best else interval(found.losses.mean(1) - least)
        equal = step == best or (worse is not None and worse[0] <= 0)
        table.append({"step": step, "loss": found.loss, "interval": found.interval(), "worse": worse, "as_good": equal})
    return {"best_step": best, "best_loss": rows[best].loss, "held_out": len(rows[best].names), "checkpoints": table}


def measured_by(config: TrainConfig, base: Base, images: ImageSet, others: ImageSet | None, images_hash: str) -> tuple[Plan, list[str]]:
    """The plan of a run with the pictures to measure by, those it held out or `others`, and what to know about them.

    images_hash: of its pictures as it was trained on them; empty if nobody knows, and then all of `others` count as not seen.
    Raises InputError if there are none that it has not seen.
    """
    facts = families.get(base.family).facts
    if not images_hash:
        config = build(TrainConfig, {**config.model_dump(), "validation_fraction": 0, "early_stop": None, "rank_probe": False})
    made = plan(config, base, facts, images, None)
    if others is None:
        if not made.held:
            raise InputError("the run trained on all its pictures; name an image set that it has not seen, with --images")
        if made.images_hash != images_hash:
            raise InputError("the pictures of the run have changed since, and it may have seen those held out now; name an image set with --images")
        return made, []
    seen = {picture.sha256 for picture in made.pictures} if images_hash else set()
    fresh = tuple(picture for picture in others.pictures if picture.sha256 not in seen)
    if not fresh:
        raise InputError(f"the run has seen every picture of {others.name}; name an image set that it has not seen")
    # Its captions need not hold the new words of the run, which are read where they do.
    wordless = {name: field.get_default() for name, field in NewWords.model_fields.items()} | ({"network": "lora"} if config.network == "none" else {})
    alone = build(TrainConfig, {**config.model_dump(), "validation_fraction": 0, "early_stop": None, "rank_probe": False, **wordless})
    other = plan(alone, base, facts, others, None)
    first = {one.picture.name: i for i, one in reversed(list(enumerate(other.shown))) if not one.prior}
    held = tuple(other.want(first[picture.name]) for picture in fresh)
    n = len(others.pictures) - len(fresh)
    return replace(made, held=held), [f"{n} pictures are left out, for the run was trained on them"] if n else []


def _look(run: Run) -> Measured:
    at_once = run.plan.config.batch_size or 1
    with evaluating(run.components):
        return measure(run.plan.held, run.plan.config.seed, at_once, run.losses)


def _told(step: int, found: Measured, rows: Mapping[int, Measured]) -> Validation:
    low, high = found.interval() or (None, None)
    best = all(found.loss <= other.loss for other in rows.values())
    return Validation(step=step, loss=found.loss, low=low, high=high, by_level=found.by_level(), by_picture=found.by_picture(), best=best)
