"""One training loop for every family."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from studio import families
from studio.config import TrainConfig
from studio.data.cache import Cache
from studio.data.images import ImageSet
from studio.errors import Cancelled, Interrupted, RunError
from studio.events import Event, Finished, Loading, Started, Step, Warned
from studio.families.base import Base
from studio.training import budget, preflight
from studio.training import team as teams
from studio.training.previews import Preview, Previewer
from studio.training.run import Run
from studio.training.start import Start, settle

__all__ = ["Preview", "Requests", "train"]


class Requests(Protocol):
    def pending(self) -> set[str]:
        """What somebody asks for now: of {"cancel", "sample", "keep", "finish", "leave"}. Each "sample" and "keep" is told once."""
        ...


def train(
    config: TrainConfig, base: Base, images: ImageSet, folder: Path, cache: Path, *, requests: Requests, preview: Preview | None, device: str
) -> Iterator[Event]:
    """Train a LoRA on the images; checkpoints go to `folder`/checkpoints, the last one is the result.

    config.start_from is a LoRA file, whose weights a new run starts from, or a checkpoint folder, whose run goes on exactly
    where it stood. Raises InputError before anything is loaded if settings or pictures do not fit, Cancelled on request,
    RunError if training cannot go on; checkpoints on disk are kept in every case.
    """
    began = time.monotonic()
    where = _device(device)
    family = families.get(base.family)
    start = settle(config, base, family.facts, images, where)
    for message in start.told:
        yield Warned(message=message)
    store = Cache(cache, base, family, start.dtype, where, start.memory.way.apart)
    with budget.capped(config, where, start.memory):
        yield from _trained(start, store, folder, Own(requests), preview, began)


def _trained(start: Start, store: Cache, folder: Path, own: "Own", preview: Preview | None, began: float) -> Iterator[Event]:
    made, base, where = start.plan, store.base, store.device
    wishes, team = Wishes(own), teams.current()
    if team.main:
        for event in store.fill(made.everything()):
            yield event
            wishes.heed()
    wishes.requests = team.hear(own, where)

    yield Loading(phase=f"Loading {base.title or base.name}")
    run = Run(made, store.family, store, folder, start.origin, start.memory)
    try:
        preflight.memory(base, store.dtype, where, made.config.base_format, made.config.block_offload or 0.0)
        run.begin(start.resumed)
        preflight.disk(folder, run.parameters, made.config.model_copy(update={"steps": made.steps}), run.step)
        previewer = Previewer(preview, store.family, run.components, folder, run.shown, store.apart)
        yield Started(step=run.step, total=made.steps, settings=run.settings(), facts=run.facts())
        if team.main and run.step == 0 and run.looks():
            yield run.validate()
        while run.step < made.steps and not run.exhausted:
            yield from _stepped(run, made.config)
            if team.main and run.looks():
                yield run.validate()
                own.finish = run.exhausted
            wishes.heed()
            yield from _told(run, everything=wishes.any())
            if team.main and (wishes.keep() or _due(made.config.save_every, run.step) or wishes.leave or run.step == run.best) and run.step < made.steps:
                yield run.save()
            if wishes.leave:
                break
            if team.main and (_due(made.config.sample_every, run.step) or wishes.sample()):
                yield from previewer.show(run.step)
            if wishes.finish:
                break
        if wishes.leave and run.step < made.steps:
            raise Interrupted(f"the worker was told to end at step {run.step}")
        if not team.main:
            return
        yield from _ended(run, made.steps, began)
    finally:
        run.close()


def _stepped(run: Run, config: TrainConfig) -> Iterator[Event]:
    """Take a step. Where something other than the next one follows, nothing may still run on the device."""
    run.advance()
    pauses = run.step == run.plan.steps or run.looks() or _due(config.save_every, run.step) or _due(config.sample_every, run.step)
    yield from _told(run, everything=pauses)


def _ended(run: Run, total: int, began: float) -> Iterator[Event]:
    """What is left to do and to say after the last step."""
    if run.exhausted:
        yield Warned(message=run.verdict)
    if run.saved is None or run.saved.step != run.step:
        yield run.save()
    result = run.result(early=run.step < total)
    if more := budget.differs(result):
        yield Warned(message=more)
    yield Finished(step=run.step, seconds=round(time.monotonic() - began, 3), result=result)


@dataclass
class Own:
    """What is asked from outside, and that the run itself asks to finish: so every process of a team hears of it at the same step."""

    requests: Requests
    finish: bool = False

    def pending(self) -> set[str]:
        return self.requests.pending() | ({"finish"} if self.finish else set())


@dataclass
class Wishes:
    """Requests as they stand at a step boundary."""

    requests: Requests
    finish: bool = False
    leave: bool = False
    _sample: bool = False
    _keep: bool = False

    def heed(self) -> None:
        """Read the requests. Raises Cancelled."""
        pending = self.requests.pending()
        if "cancel" in pending:
            raise Cancelled("training was cancelled; its checkpoints are kept")
        self.finish |= "finish" in pending
        self.leave |= "leave" in pending
        self._sample |= "sample" in pending
        self._keep |= "keep" in pending

    def any(self) -> bool:
        return self.finish or self.leave or self._sample or self._keep

    def sample(self) -> bool:
        """Whether a sample was asked for since the last time."""
        asked, self._sample = self._sample, False
        return asked

    def keep(self) -> bool:
        """Whether a checkpoint was asked for since the last time."""
        asked, self._keep = self._keep, False
        return asked


def _told(run: Run, *, everything: bool) -> Iterator[Event]:
    """What there is to say of the steps whose figures have come."""
    for note in run.notes:
        yield Warned(message=note)
    run.notes.clear()
    for taken in run.taken(everything=everything):
        outcome, total = taken.outcome, run.plan.steps
        norm, seconds = outcome.gradient_norm, round(taken.seconds, 4)
        yield Step(step=taken.step, total=total, loss=outcome.loss, learning_rate=taken.rate, gradient_norm=norm, seconds=seconds)
        if run.store.device.type == "cuda" and (slower := run.pace.seen(taken.seconds)):
            yield Warned(message=slower)
        if not outcome.applied:
            yield Warned(message=f"step {taken.step}: the loss is not finite; step skipped ({run.skipped} so far)")


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _device(name: str) -> torch.device:
    """The device, ready for training. Raises RunError if this machine has none of the kind."""
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise RunError("no CUDA GPU can be used here; set STUDIO_DEVICE=cpu, or check the driver with nvidia-smi")
        if device.index is not None:
            torch.cuda.set_device(device)  # kernels of our own are started on the current one
        # Its backward pass ended in an illegal memory access on Flux at 512 px.
        torch.backends.cuda.enable_cudnn_sdp(False)
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise RunError("no Apple GPU can be used here; set STUDIO_DEVICE=cpu")
    return device
