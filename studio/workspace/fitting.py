"""Whether a training run fits a card, and how: the memory plan before there is a job."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from studio import families
from studio.config import TrainConfig
from studio.data import buckets
from studio.errors import SettingsError
from studio.footprint import choice, told
from studio.footprint.choice import GB
from studio.footprint.estimate import Card, Job
from studio.jobs.devices import Device
from studio.jobs.handlers import base_values
from studio.workspace.bases import Bases
from studio.workspace.plans import resolved_train
from studio.workspace.sets import Sets

CARDS = (8, 12, 16, 24)  # GB of cards that people have
UNKNOWN_PICTURES = 20  # planned with where no image set is named


class Fitting:
    """Use cases around memory plans."""

    def __init__(self, bases: Bases, sets: Sets, devices: Callable[[], Sequence[Device]]) -> None:
        self._bases, self._sets, self._devices = bases, sets, devices

    def plan(self, config: TrainConfig, card: float | None = None, *, counted: bool = True) -> dict[str, Any]:
        """The plan of a run, by part and phase, and what was chosen.

        card: GB of another card than this machine's; a budget in the settings counts first. counted: False where no image set is named yet.
        Raises BaseError or SettingsError where nothing can be planned.
        """
        job, title = self._job(config, card, counted)
        found = choice.choose(job)
        return {**told.values(found), "card": title, "cuda": job.card.cuda, "text": told.table(found)}

    def rehearsal(self, config: TrainConfig) -> str | None:
        """What `python -m studio.bench.rehearsal` is to be given; None where there is no GPU to rehearse on."""
        job, _ = self._job(config, None, True)
        if not job.card.cuda:
            return None
        asked = {"settings": job.config.model_dump(mode="json"), "base": base_values(job.base), "size": [job.width, job.height]}
        return json.dumps({**asked, "device": self._devices()[0].name})

    def _job(self, config: TrainConfig, card: float | None, counted: bool) -> tuple[Job, str]:
        base = self._bases.resolve(config)
        settings = resolved_train(config, base)
        if not settings.resolution:
            raise SettingsError(f"setting resolution has no default for {base.name}; give it")
        family = families.get(base.family)
        side = max(settings.resolution, *settings.more_resolutions, 0)
        # The largest bucket may be no square, but has no more pixels than one
        width, height = max(buckets.table(side * side, family.facts.size_multiple), key=lambda size: (size[0] * size[1], min(size)))
        there, title = self._card(settings, card)
        pictures = self._sets.resolve(config.images).n if counted else UNKNOWN_PICTURES
        return Job(settings, base, family, there, height, width, pictures), title

    def _card(self, config: TrainConfig, card: float | None) -> tuple[Card, str]:
        host = psutil.virtual_memory().available
        wanted = int(GB * (config.memory_budget or card or 0))
        device = self._devices()[0]
        if card is not None:
            return Card(True, wanted, host), f"a card of {card:g} GB"
        if device.name.startswith("cuda"):
            return Card(True, min(wanted, device.memory) if wanted and device.memory else wanted or device.memory, host), device.title
        return Card(False, min(wanted or host, host)), device.title
