"""The fastest way to take a run's steps that fits a card: empty settings are settled, those that are given stay as they are."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from studio.config import TrainConfig
from studio.families import away
from studio.footprint.estimate import SAMPLES, Card, Footprint, Job, Way, blocks, estimate

# Faster ones first, as measured (assets/docs/performance.md): a recorded step whose blocks come from main memory beats an eager one on a rounded
# base, and rounds nothing. Format of the base, and share of its blocks that may wait in main memory where that is large enough.
ORDER = (("full", 0.0), ("full", 1.0), ("int8", 0.0), ("nf4", 0.0), ("int8", 1.0), ("nf4", 1.0))
SHARES = tuple(n / 20 for n in range(1, 21))  # of blocks that wait
HALF = 0.5  # share of blocks that recorded steps recompute before they recompute all
HOST_SHARE = 0.6  # of the free main memory that waiting blocks may take: pages that are pinned are lost to all others
LEAST_SIDE = 256  # pixels; no lower resolution is proposed
GB = 1e9


@dataclass(frozen=True)
class Choice:
    """The way that was chosen. why: what decided. notes: what somebody should know before it begins."""

    way: Way
    footprint: Footprint
    card: Card
    fits: bool
    why: str
    notes: tuple[str, ...] = ()

    def applied(self, config: TrainConfig) -> TrainConfig:
        """The settings with what was empty about the base settled; the default format keeps its name."""
        changes: dict[str, Any] = {"block_offload": self.way.offload} if config.block_offload is None else {}
        if config.base_format == "auto" and self.way.format != "full":
            changes["base_format"] = self.way.format
        return config.model_copy(update=changes)

    def facts(self) -> dict[str, Any]:
        """For the record of the run."""
        training = self.footprint.phases["training"]
        return {
            "planned_bytes": self.footprint.peak,
            "planned_training_bytes": sum(training.values()),
            "planned_parts": dict(training),
            "memory_budget_bytes": self.card.budget,
            "recomputed_share": self.way.recomputed,
            "memory_reason": self.why,
        }


def choose(job: Job) -> Choice:
    """The first way in the stated order that fits the budget; where none does, the one that takes least, with the way out in `notes`."""
    tried = list(_first_fit(job))
    way, found = tried[-1]
    fits = _fits(found, job.card)
    if fits and way.offload:
        way, found = _roomy(job, way, found)
    if not fits:
        way, found = min(tried, key=lambda pair: pair[1].peak)
    notes = _samples(found, job) if fits else (refusal(job, found),)
    if fits and way.format != "full" and job.config.base_format == "auto":
        notes = (f"the base is kept in {way.format}, which fits {_gb(job.card.budget)}{_whole(job)}", *notes)
    return Choice(way, found, job.card, fits, _why(way, found, tried[0][1], job), notes)


def refusal(job: Job, least: Footprint) -> str:
    """One line: the smallest need, the budget, the way out."""
    config = job.config
    title = job.base.title or job.base.name
    given = [name for name, empty in (("base_format", "auto"), ("gradient_checkpointing", None), ("block_offload", None)) if getattr(config, name) != empty]
    asked = f" with {' and '.join(given)} as given" if given else ""
    return (
        f"{title} at {job.side} px, batch {config.batch_size or 1}, rank {config.rank} takes at least {_gb(least.peak)}{asked} "
        f"and {_gb(job.card.budget)} may be taken: {_way_out(job, given)}"
    )


def recordable(config: TrainConfig, way: Way, card: Card) -> bool:
    """Whether steps can be recorded in that way, as training finds out for itself once the base is loaded."""
    plain = config.network == "lora" and config.init not in ("pissa", "olora") and not config.dropout
    twice = config.prior_prediction or config.masked_prior_weight or config.preference_beta is not None
    alone = config.processes == 1 and not twice and not config.reads_live
    usual = config.optimizer == "adamw" and config.precision != "fp16" and config.speed != "eager"
    return card.cuda and plain and alone and usual and way.format == "full"


def ways(job: Job) -> Iterator[Way]:
    """All ways that the settings leave open, fastest first."""
    config, card = job.config, job.card
    seen: set[Way] = set()
    apart = _apart(job)
    for format, most in ORDER:
        if not _format_open(format, job):
            continue
        name = config.base_format if config.base_format != "auto" else format
        for offload in _offloads(config, card, most):
            for recomputed in (1.0,) if offload and config.gradient_checkpointing is None else _recomputed(config):
                way = Way(name, recomputed, offload, apart=apart)
                way = replace(way, recorded=recordable(config, way, card))
                if way not in seen and (recomputed != HALF or way.recorded) and _waits(job, way):
                    seen.add(way)
                    yield way


def _first_fit(job: Job) -> Iterator[tuple[Way, Footprint]]:
    for way in ways(job):
        found = estimate(job, way)
        yield way, found
        if _fits(found, job.card):
            return


def _fits(found: Footprint, card: Card) -> bool:
    """Whether the run's phases fit, with what the allocator holds idle: what a recorded step has taken is not given back when memory is short."""
    return card.budget <= 0 or all(found.total(name) <= card.budget for name in found.phases if name != SAMPLES)


def _roomy(job: Job, way: Way, found: Footprint) -> tuple[Way, Footprint]:
    """The same way with a buffer more for blocks that come, where that fits too."""
    more = replace(way, buffers=away.ROOMY)
    roomy = estimate(job, more)
    return (more, roomy) if _fits(roomy, job.card) else (way, found)


def _format_open(format: str, job: Job) -> bool:
    if job.config.base_format != "auto":
        return format == "full"  # once; the name is replaced by the one that is given
    return format == "full" or (job.card.cuda and not job.config.fp8_products and (format != "nf4" or find_spec("bitsandbytes") is not None))


def _offloads(config: TrainConfig, card: Card, most: float) -> tuple[float, ...]:
    if config.block_offload is not None:
        return (config.block_offload,)
    if not most:
        return (0.0,)
    return tuple(share for share in SHARES if share <= most) if card.cuda and not config.fp8_products else ()


def _recomputed(config: TrainConfig) -> tuple[float, ...]:
    if config.gradient_checkpointing is None:
        return (0.0, HALF, 1.0)
    return (1.0,) if config.gradient_checkpointing else (0.0,)


def _waits(job: Job, way: Way) -> bool:
    """Whether main memory can hold the blocks that wait."""
    if not way.offload or not job.card.host:
        return True
    return _waiting_bytes(job, way) <= HOST_SHARE * job.card.host


def _waiting_bytes(job: Job, way: Way) -> int:
    sizes = blocks(job, way)
    return sum(sizes[name] for name in away.chosen(sizes, way.offload))


def _apart(job: Job) -> frozenset[str]:
    """Parts that are larger than the budget while captions or pictures are encoded."""
    if not job.card.cuda or job.card.budget <= 0:
        return frozenset()
    found = estimate(job, Way())
    return frozenset(part for part, phase in (("text", "captions"), ("vae", "pictures")) if found.total(phase) > job.card.budget)


def _samples(found: Footprint, job: Job) -> tuple[str, ...]:
    need = found.total(SAMPLES)
    if not job.card.budget or need <= job.card.budget:
        return ()
    return (f"samples take about {_gb(need)}, more than the {_gb(job.card.budget)} that may be taken: they may be left out; draw them afterwards instead",)


def _whole(job: Job) -> str:
    """How much free main memory would let the base keep all its bits, if that is what is missing."""
    rich = replace(job, card=replace(job.card, host=0), config=job.config.model_copy(update={"base_format": "full"}))
    fitting = next((way for way, found in _first_fit(rich) if _fits(found, rich.card)), None)
    if fitting is None or not fitting.offload:
        return ""
    return f"; with {_gb(int(_waiting_bytes(rich, fitting) / HOST_SHARE))} of free main memory it could keep all its bits"


def _why(way: Way, found: Footprint, first: Footprint, job: Job) -> str:
    told = [f"in {way.format}"] if way.format != "full" else []
    told += [f"{way.recomputed:.0%} of the blocks recomputed"] if way.recomputed else []
    told += [f"{way.offload:.0%} of the base waiting in main memory"] if way.offload else []
    if not job.card.budget:
        return "nobody can say how much memory there is"
    if not told:
        return "everything fits"
    given = "" if found.peak == first.peak else f": {_gb(first.peak)} without that, {_gb(found.peak)} with it"
    return ", ".join(told) + given


def _way_out(job: Job, given: list[str]) -> str:
    """What would fit, tried out: the settings that were given left open, one picture at a time, a lower resolution, a smaller rank."""
    config = job.config
    free = {"base_format": "auto", "gradient_checkpointing": None, "block_offload": None}
    if given and _some_fit(replace(job, config=config.model_copy(update={name: free[name] for name in given}))):
        return f"leave {' and '.join(given)} empty, then it fits"
    if (config.batch_size or 1) > 1 and _some_fit(replace(job, config=config.model_copy(update={"batch_size": 1}))):
        return f"set batch_size to 1 with gradient_accumulation {config.gradient_accumulation * (config.batch_size or 1)}"
    for side in range((job.side - 1) // 64 * 64, LEAST_SIDE - 1, -64):
        scale = side / job.side
        smaller = replace(job, height=max(64, int(job.height * scale) // 64 * 64), width=max(64, int(job.width * scale) // 64 * 64))
        if _some_fit(smaller):
            return f"set resolution to {side}"
    if (config.rank or 0) > 8 and _some_fit(replace(job, config=config.model_copy(update={"rank": 8, "batch_size": 1}), height=LEAST_SIDE, width=LEAST_SIDE)):
        return f"set rank to 8 and resolution to {LEAST_SIDE}"
    return "take a smaller base, or a card with more memory"


def _some_fit(job: Job) -> bool:
    """Whether the way that saves most, of each format, fits."""
    least = {way.format: way for way in ways(job)}
    return any(_fits(estimate(job, way), job.card) for way in least.values())


def _gb(size: int) -> str:
    return f"{size / GB:.1f} GB"
