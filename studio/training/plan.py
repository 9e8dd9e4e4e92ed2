"""What a run will do, settled before anything is loaded: settings, crops, captions, order, number of steps."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from studio import config as settings
from studio.config import TrainConfig
from studio.config.training.objective import check_objective
from studio.config.training.optimization import HABITS
from studio.data import buckets
from studio.data.buckets import Crop, Order
from studio.data.cache import Want
from studio.data.images import ImageSet, Picture
from studio.errors import ImageError, SettingsError
from studio.families import quantised
from studio.families.base import Base, Facts
from studio.training import checkpoint, draws, holdout, networks, newwords, optim
from studio.training.draws import Draw
from studio.training.showing import Shown, shown

# Settings that a resumed run may change: they move its end, its output or its looks, not a step that was taken.
FREE = frozenset(
    {
        "steps",
        "epochs",
        "name",
        "output",
        "images",
        "trigger",
        "start_from",
        "gradient_checkpointing",
        "block_offload",
        "memory_budget",
        "speed",
        "processes",
        "trackers",
    }
    | {"validation_every", "early_stop", "keep_best", "rank_probe"}
    | {"save_every", "sample_every", "sample_prompts", "keep_checkpoints", "anchor_every"}
)

FEW_HELD = 3  # held-out pictures below which it is warned
LION_RATE = 5e-5  # above it Lion is warned about; AdamW's usual rate for a LoRA is 1e-4


@dataclass(frozen=True)
class Plan:
    config: TrainConfig  # resolved: no None where a number is needed
    shown: tuple[Shown, ...]
    order: Order
    steps: int
    images_hash: str
    warnings: tuple[str, ...]
    held: tuple[Want, ...] = ()  # never trained on

    def everything(self) -> list[Want]:
        """All encodings that the run can ask for."""
        sides = (False, True) if self.config.flip else (False,)
        found = [self.want(i, mirrored, caption) for i, one in enumerate(self.shown) for mirrored in sides for caption in one.captions]
        if self.config.caption_dropout > 0:
            found.append(self.want(0, False, ""))
        found += self.held
        return [*found, *(rival for want in found if (rival := want.against))]

    def want(self, i: int, mirrored: bool = False, caption: str | None = None) -> Want:
        """What a shown picture is made of; its first caption unless another is named."""
        one = self.shown[i]
        return Want(one.picture, one.crop, mirrored, one.captions[0] if caption is None else caption, self.config.masked_loss, one.weight, one.prior, one.rival)

    def batch(self, number: int) -> list[tuple[Want, Draw]]:
        """The pictures of a batch, counted from the start of training, with their random draws."""
        config = self.config
        found = []
        for item in self.order.batch(number):
            draw = draws.draw(config.seed, number, item.number, flip=config.flip, caption_dropout=config.caption_dropout)
            captions = self.shown[item.picture].captions
            caption = "" if draw.captionless else captions[draw.choice("caption", len(captions))]
            found.append((self.want(item.picture, draw.mirrored, caption), draw))
        return found

    def only_prior(self, numbers: range) -> bool:
        """Whether these batches ask for nothing but what the base predicts anyway, so that a fresh adapter has no reason to move."""
        return all(self.shown[item.picture].prior for number in numbers for item in self.order.batch(number))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(one.picture for one in self.shown)

    @property
    def crops(self) -> tuple[Crop, ...]:
        return tuple(one.crop for one in self.shown)

    @property
    def captions(self) -> tuple[str, ...]:
        return tuple(one.captions[0] for one in self.shown)


def plan(config: TrainConfig, base: Base, facts: Facts, images: ImageSet, resumed: checkpoint.State | None) -> Plan:
    """Settle everything; a drawn seed is that of `resumed`. Raises SettingsError or ImageError with the way out."""
    if not images.pictures:
        raise ImageError(f"image set {images.name}: there is no picture in it; add some")
    seed = _seed(config, resumed)
    config = settings.resolve(config, HABITS.get(config.optimizer, {}), base.habits.get("train", {}), facts.defaults.get("train", {}))
    optim.check(config)
    quantised.check(config.base_format)
    check_objective(base.habits.get("objective", facts.objective), config)
    config = settings.build(TrainConfig, config.model_dump() | {"seed": seed, "alpha": config.alpha or config.rank} | networks.resolved(config))
    missing = [name for name in ("batch_size", "resolution", "rank", "learning_rate") if getattr(config, name) is None]
    if missing or (config.steps is None and config.epochs is None):
        raise SettingsError(f"setting {(missing or ['steps'])[0]} has no default for {base.name}; give it")
    assert config.resolution and config.batch_size
    entries = shown(images, config, facts.size_multiple)
    main = {picture.path for picture in images.pictures}
    own: dict[Path, Shown] = {}
    for one in entries:
        if one.picture.path in main:
            own.setdefault(one.picture.path, one)
    held = [list(own.values())[i] for i in sorted(holdout.chosen([one.picture.sha256 for one in own.values()], config.validation_fraction))]
    secret = {one.picture.sha256 for one in held}
    kept = tuple(one for one in entries if one.picture.sha256 not in secret)
    order = buckets.order([one.crop for one in kept], config.batch_size, [one.repeats for one in kept], config.seed)
    steps = config.steps or order.steps(config.epochs or 1, config.gradient_accumulation)
    pictures_hash = checkpoint.digest([one.told() for one in entries])
    few = f"{len(held)} held-out pictures tell little: the interval of their loss is wide; 4 or more are better"
    told = (
        *_warnings(images, entries, order, config),
        *([few] if 0 < len(held) < FEW_HELD else []),
        *networks.check(config, facts, steps, resumed is not None),
        *newwords.check(config, facts, kept),
    )
    # Each is judged once: at the first size, under the first caption.
    judged = tuple(Want(one.picture, one.crop, False, one.whole or one.captions[0], config.masked_loss, rival=one.rival) for one in held)
    return Plan(config, kept, order, steps, pictures_hash, told, judged)


def resumable(config: TrainConfig) -> Path | None:
    """The checkpoint folder that `start_from` names, whole or not, or None if it names a LoRA file or nothing."""
    path = Path(config.start_from) if config.start_from else None
    return path if path is not None and (checkpoint.is_checkpoint(path) or checkpoint.step_of(path) >= 0) else None


def _seed(config: TrainConfig, resumed: checkpoint.State | None) -> int:
    if config.seed >= 0:
        return config.seed
    return int(resumed.settings["seed"]) if resumed else secrets.randbelow(2**32)


def _warnings(images: ImageSet, entries: Sequence[Shown], order: Order, config: TrainConfig) -> tuple[str, ...]:
    found = []
    small = list(dict.fromkeys(one.picture.name for one in entries if one.crop.small and not one.prior))
    if small:
        side = config.resolution
        listed = ", ".join(small[:3]) + (", ..." if len(small) > 3 else "")
        n = len({one.picture.path for one in entries})
        found.append(f"{len(small)} of {n} pictures have fewer pixels than {side}x{side} and are trained at their own size: {listed}")
    if order.batch_size > order.items:
        found.append(f"batch_size {order.batch_size} is more than the {order.items} pictures of an epoch: every batch holds all of them")
    if not any(picture.caption for picture in images.pictures):
        found.append("no picture has a caption: what they share and what they show cannot be told apart")
    return (*found, *_doubtful(config))


def _doubtful(config: TrainConfig) -> list[str]:
    """What an optimizer would rather have."""
    found = []
    if config.optimizer == "prodigy" and config.learning_rate != 1.0:
        found.append(
            f"optimizer prodigy finds the learning rate itself and wants learning_rate 1, not {config.learning_rate:g}; d_coef in optimizer_options tames it"
        )
    if config.optimizer == "schedule-free" and config.lr_schedule != "constant":
        found.append(f"optimizer schedule-free takes the place of a schedule; lr_schedule {config.lr_schedule} on top of it slows its end, constant is meant")
    if config.optimizer == "lion" and config.learning_rate and config.learning_rate > LION_RATE:
        found.append(f"optimizer lion takes steps of full size: a third to a tenth of AdamW's learning_rate is usual, {config.learning_rate:g} is a lot")
    return found
