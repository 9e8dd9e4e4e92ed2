"""The smallest ranks that predict held-out pictures as well: each layer is trimmed by energy, and the loss asked after every cut.

Full and trimmed adapter see the same pictures under the same noise, so their losses are compared picture by picture. A trimmed one
counts as equal if even the upper end of the 95 % interval of the mean difference costs no more than `tolerance` of what the adapter
gains over the bare base. The share of energy is found by bisection: the less is kept, the worse it predicts.
"""

import re
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from studio import families
from studio.config import TrainConfig, build
from studio.data.cache import Cache
from studio.data.images import ImageSet
from studio.errors import Cancelled, FormatError, InputError
from studio.evaluation.checkpoints import PLAIN, measured_by, opened
from studio.events import Event, Loading, Started, Warned
from studio.families.base import Base
from studio.families.devices import resolve_dtype
from studio.lora import attach
from studio.lora.adapter import Adapter, Decomposed
from studio.lora.tools import trim
from studio.training.loop import Requests
from studio.training.run import Run
from studio.training.validation import Measured, evaluating, interval, measure

TOLERANCE = 0.01  # of the gain over the base
# Shares of every layer's squared norm to give up, from next to nothing to half of it, evenly in their logarithm.
GIVEN_UP = tuple(10 ** (-6 + step * 0.19) for step in range(31))
LARGEST = 512  # rank that a layer can be attached with


@dataclass(frozen=True)
class Subject:
    """An adapter and what measures it.

    images: what it was trained on, as `config` says; others: pictures to measure by instead of those that were held out. Both are the
    same for a file of which nobody knows what it was trained on; then every picture counts as held out.
    """

    adapter: Adapter
    config: TrainConfig
    base: Base
    images: ImageSet
    images_hash: str = ""  # of the pictures as they were trained on; empty: not known
    others: ImageSet | None = None


@dataclass(frozen=True)
class Probed:
    """adapter: the smaller one, or None if none is as good. report: JSON values."""

    adapter: Adapter | None
    report: dict[str, Any]


def probe(subject: Subject, folder: Path, cache: Path, *, tolerance: float, requests: Requests, device: torch.device) -> Generator[Event, None, Probed]:
    """Find the smaller adapter. Raises FormatError for layers without ranks, InputError if there is nothing to measure by."""
    yield Loading(phase="looking for the smallest ranks: singular values")
    cut = trim.Trim.of(subject.adapter)
    family = families.get(subject.base.family)
    made, told = measured_by(measuring(subject), subject.base, subject.images, subject.others, subject.images_hash)
    for message in told:
        yield Warned(message=message)
    store = Cache(cache, subject.base, family, resolve_dtype(made.config.precision, device), device)
    yield from store.fill(made.everything())
    yield Loading(phase=f"Loading {subject.base.title or subject.base.name}")
    run = opened(made, store, folder)
    try:
        run.begin(None)
        looks = Looks(run, requests)
        base, full = looks.at(replace(subject.adapter, layers={})), looks.at(subject.adapter)
        yield Started(total=len(GIVEN_UP).bit_length(), facts={"held_out": len(made.held), "loss": full.loss, "base_loss": base.loss})
        if full.loss >= base.loss:
            yield Warned(message=f"the LoRA predicts the held-out pictures no better than the base: {full.loss:.4g} against {base.loss:.4g}")
        found = yield from _search(cut, looks, full, tolerance * max(base.loss - full.loss, 0.0))
    finally:
        run.close()
    yield from _said(found)
    return Probed(found.adapter, _report(subject.adapter, cut, found, (base, full), tolerance))


def with_bytes(report: dict[str, Any], n: int) -> dict[str, Any]:
    """The report with the size of the smaller file."""
    return {**report, "after": {**report["after"], "bytes": n}}


def sentence(report: dict[str, Any]) -> str:
    """What was done, for the header of the file."""
    before, after = report["before"], report["after"]
    losses = f"held-out loss {after['loss']:.5g}, {report['loss']:.5g} before, {report['base_loss']:.5g} of the base"
    return (
        f"Trimmed by the rank probe to {after['energy']:.4%} of every layer's energy, mean rank {after['mean_rank']:g} of {before['mean_rank']:g}: "
        f"{losses}, on {report['held_out']} pictures."
    )


def measuring(subject: Subject) -> TrainConfig:
    """The settings under which every layer of the adapter has a place, at its largest rank, and the rest is as it was trained."""
    layers = subject.adapter.layers
    if not layers:
        raise InputError("there are new words alone and no layers, so there are no ranks to look for")
    rank = max(layer.rank for layer in layers.values())
    if rank > LARGEST:
        raise InputError(f"the LoRA has layers of rank {rank}; those above {LARGEST} are resized first: resize --rank {LARGEST}")
    dora = [isinstance(layer, Decomposed) for layer in layers.values()]
    if any(dora) and not all(dora):
        raise FormatError("some layers are DoRA and some are not, which cannot be measured together: make a plain LoRA of it first (resize with --base)")
    config, facts = subject.config, families.get(subject.base.family).facts
    names = [path.removeprefix(f"{facts.denoiser}.") for path in layers if path.startswith(f"{facts.denoiser}.")]
    fields = TrainConfig.model_fields
    plain = {name: fields[name].get_default() for name in ("init", "final_rank", "rank_stabilized", "dropout", "lora_plus_ratio", "text_encoder_stop")}
    rows = {name: fields[name].get_default() for name in ("block_ranks", "block_alphas", "block_rates")}
    wanted = {
        "network": "dora" if any(dora) else "lora",
        "rank": rank,
        "alpha": None,
        "text_encoder_learning_rate": 1e-5 if len(names) < len(layers) else None,
    }
    if not subject.images_hash:  # nobody knows its targets: the narrowest preset with a place for every layer
        covers = {name: re.compile("|".join(f"(?:{pattern})" for pattern in patterns)) for name, patterns in facts.lora_targets.items()}
        wanted["targets"] = next((name for name, pattern in covers.items() if all(map(pattern.fullmatch, names))), "full+conv")
    return build(TrainConfig, {**config.model_dump(), **PLAIN, **plain, **rows, **wanted})


@dataclass
class Looks:
    """Measures adapters on one loaded base, each by the same draws."""

    run: Run
    requests: Requests
    n: int = 0

    def at(self, adapter: Adapter) -> Measured:
        """Raises Cancelled if somebody asked for it."""
        if "cancel" in self.requests.pending():
            raise Cancelled("the rank probe was cancelled; the LoRA is as it was")
        self.n += 1
        unread = not self.run.attached.words  # words of a file of which nobody knows the settings; its layers are what is asked about
        attach.load(self.run.attached, replace(adapter, embeddings={}) if unread else adapter)
        config = self.run.plan.config
        with evaluating(self.run.components):
            return measure(self.run.plan.held, config.seed, config.batch_size or 1, self.run.losses)


@dataclass(frozen=True)
class Tried:
    """One share of energy and what it costs. worse: mean difference per picture to the full adapter, and the interval of that mean."""

    adapter: Adapter
    kept: float
    measured: Measured
    worse: float
    between: tuple[float, float] | None
    equal: bool


@dataclass(frozen=True)
class Found:
    """Everything that was tried, and the best of it."""

    tried: tuple[Tried, ...]
    chosen: Tried | None

    @property
    def adapter(self) -> Adapter | None:
        return self.chosen.adapter if self.chosen else None


def _search(cut: trim.Trim, looks: Looks, full: Measured, allowed: float) -> Generator[Event, None, Found]:
    """Bisection over GIVEN_UP: everything up to the last one that is equal is equal too."""
    low, high = -1, len(GIVEN_UP)
    whole, chosen = trim.size(cut.adapter), None
    tried: list[Tried] = []
    while high - low > 1:
        middle = (low + high) // 2
        smaller = cut.keeping(1 - GIVEN_UP[middle])
        if trim.size(smaller) == whole:
            low = middle  # nothing is gone yet, so there is nothing to measure
            continue
        one = judged(smaller, 1 - GIVEN_UP[middle], looks.at(smaller), full, allowed)
        tried.append(one)
        yield Loading(phase="looking for the smallest ranks", done=len(tried), total=len(GIVEN_UP).bit_length())
        if one.equal:
            low, chosen = middle, one
        else:
            high = middle
    return Found(tuple(tried), chosen)


def judged(adapter: Adapter, kept: float, measured: Measured, full: Measured, allowed: float) -> Tried:
    """Whether the adapter is equal to the full one: with a single picture its difference alone decides, for there is no interval."""
    differences = measured.losses.mean(1) - full.losses.mean(1)
    worse, between = float(differences.mean()), interval(differences)
    return Tried(adapter, kept, measured, worse, between, (between[1] if between else worse) <= allowed)


def _said(found: Found) -> Generator[Event, None, None]:
    if found.chosen is None:
        yield Warned(message="rank probe: no smaller LoRA predicts the held-out pictures as well; this one uses all its ranks")
    elif found.chosen.between is None:
        yield Warned(message="rank probe: one held-out picture gives no interval; what is equal on it may not be on others")


def _report(adapter: Adapter, cut: trim.Trim, found: Found, losses: tuple[Measured, Measured], tolerance: float) -> dict[str, Any]:
    base, full = losses
    chosen = found.chosen
    told: dict[str, Any] = {
        "held_out": len(full.names),
        "tolerance": tolerance,
        "base_loss": base.loss,
        "loss": full.loss,
        "before": _sizes(adapter),
        "after": None,
        "tried": [
            {
                "energy": one.kept,
                "parameters": trim.size(one.adapter),
                "loss": one.measured.loss,
                "worse": one.worse,
                "between": one.between,
                "equal": one.equal,
            }
            for one in sorted(found.tried, key=lambda one: -one.kept)
        ],
    }
    if chosen:
        residual = cut.residual(chosen.adapter)
        figures = {"energy": chosen.kept, "loss": chosen.measured.loss, "worse": chosen.worse, "between": chosen.between, "residual": residual}
        told["after"] = {**_sizes(chosen.adapter), **figures}
    return told


def _sizes(adapter: Adapter) -> dict[str, Any]:
    ranks = [layer.rank for layer in adapter.layers.values()]
    return {"parameters": trim.size(adapter), "ranks": [min(ranks), max(ranks)], "mean_rank": round(sum(ranks) / len(ranks), 2)}
