"""Evaluation of a run's checkpoints, in the worker."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from studio.config import TrainConfig, build
from studio.errors import NotFound
from studio.events import Event, Loading
from studio.jobs.folder import JobFolder

if TYPE_CHECKING:
    from studio.jobs.handlers import Work


def evaluate(work: "Work") -> Iterator[Event]:
    """The held-out loss of every checkpoint of a run."""
    yield Loading(phase="starting")
    import torch

    from studio.data.images import read_set
    from studio.evaluation.checkpoints import Subject
    from studio.evaluation.checkpoints import evaluate as run

    work.warm.free()
    paths = work.manifest.paths
    trained = JobFolder.of(work.layout.jobs, paths["run"])
    checkpoints = [trained.path / said.path for said in trained.checkpoints()]
    if not checkpoints:
        raise NotFound("the run has no checkpoint any more")
    others = read_set(Path(paths["others"])) if "others" in paths else None
    subject = Subject(build(TrainConfig, trained.manifest().settings), work.base, checkpoints, read_set(Path(paths["images"])), others)
    cache = work.layout.cache / "encoded"
    yield from run(subject, work.folder.path, cache, requests=work.requests, device=torch.device(work.warm.device))


HANDLERS: "dict[str, Callable[[Work], Iterator[Event]]]" = {"evaluate": evaluate}
