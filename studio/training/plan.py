"""What a run will do, settled before anything is loaded: settings, crops, captions, order, number of steps."""

import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from studio import config as settings
from studio.config import TrainConfig
from studio.config.training.optimization import HABITS
from studio.data import buckets
from studio.data.buckets import Crop, Order
from studio.data.cache import Want
from studio.data.images import ImageSet, Picture
from studio.errors import ImageError, SettingsError
from studio.families import quantised
from studio.families.base import Base, Facts
from studio.training import checkpoint, draws, holdout, networks, optim
from studio.training.draws import Draw

# Settings that a resumed run may change: they move its end, its output or its looks, not a step that was taken.
FREE = frozenset(
    {"steps", "epochs", "name", "output", "images", "trigger", "start_from", "gradient_checkpointing", "processes", "trackers"}
    | {"validation_every", "early_stop", "keep_best"}
    | {"save_every", "sample_every", "sample_prompts", "keep_checkpoints", "anchor_every"}
)

FEW_HELD = 3  # held-out pictures below which it is warned
LION_RATE = 5e-5  # above it Lion is warned about; AdamW's usual rate for a LoRA is 1e-4


@dataclass(frozen=True)
class Plan:
    config: TrainConfig  # resolved: no None where a number is needed
    pictures: tuple[Picture, ...]
    crops: tuple[Crop, ...]
    captions: tuple[str, ...]
    order: Order
    steps: int
    images_hash: str
    warnings: tuple[str, ...]
    held: tuple[Want, ...] = ()  # never trained on

    def everything(self) -> list[Want]:
        """All encodings that the run can ask for."""
        found = [
            Want(picture, crop, mirrored, caption)
            for picture, crop, caption in zip(self.pictures, self.crops, self.captions, strict=True)
            for mirrored in ((False, True) if self.config.flip else (False,))
        ]
        if self.config.caption_dropout > 0:
            found.append(Want(self.pictures[0], self.crops[0], False, ""))
        return [*found, *self.held]

    def batch(self, number: int) -> list[tuple[Want, Draw]]:
        """The pictures of a batch, counted from the start of training, with their random draws."""
        config = self.config
        found = []
        for item in self.order.batch(number):
            draw = draws.draw(config.seed, number, item.number, flip=config.flip, caption_dropout=config.caption_dropout)
            i = item.picture
            found.append((Want(self.pictures[i], self.crops[i], draw.mirrored, "" if draw.captionless else self.captions[i]), draw))
        return found


def plan(config: TrainConfig, base: Base, facts: Facts, images: ImageSet, resumed: checkpoint.State | None) -> Plan:
    """Settle everything; a drawn seed is that of `resumed`. Raises SettingsError or ImageError with the way out."""
    if not images.pictures:
        raise ImageError(f"image set {images.name}: there is no picture in it; add some")
    seed = _seed(config, resumed)
    config = settings.resolve(config, HABITS.get(config.optimizer, {}), base.habits.get("train", {}), facts.defaults.get("train", {}))
    optim.check(config)
    quantised.check(config.base_format)
    config = settings.build(TrainConfig, config.model_dump() | {"seed": seed, "alpha": config.alpha or config.rank})
    missing = [name for name in ("batch_size", "resolution", "rank", "learning_rate") if getattr(config, name) is None]
    if missing or (config.steps is None and config.epochs is None):
        raise SettingsError(f"setting {(missing or ['steps'])[0]} has no default for {base.name}; give it")
    assert config.resolution and config.batch_size
    named = {picture.name: (picture.width, picture.height) for picture in images.pictures}
    crops = tuple(buckets.plan(named, config.resolution**2, facts.size_multiple).values())
    captions = tuple(with_trigger(picture.caption, config.trigger or images.trigger) for picture in images.pictures)
    wants = [Want(*one) for one in zip(images.pictures, crops, (False,) * len(crops), captions, strict=True)]
    held = holdout.chosen([picture.sha256 for picture in images.pictures], config.validation_fraction)
    kept = [want for i, want in enumerate(wants) if i not in held]
    order = buckets.order([want.crop for want in kept], config.batch_size, config.repeats, config.seed)
    steps = config.steps or order.steps(config.epochs or 1, config.gradient_accumulation)
    pictures_hash = checkpoint.digest([[p.name, p.sha256, caption] for p, caption in zip(images.pictures, captions, strict=True)])
    told = (*_warnings(images, crops, order, config), *networks.check(config, facts, steps, resumed is not None))
    return Plan(
        config,
        tuple(want.picture for want in kept),
        tuple(want.crop for want in kept),
        tuple(want.caption for want in kept),
        order,
        steps,
        pictures_hash,
        told,
        tuple(wants[i] for i in sorted(held)),
    )


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with the trigger in front, unless it says it already."""
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def resumable(config: TrainConfig) -> Path | None:
    """The checkpoint folder that `start_from` names, whole or not, or None if it names a LoRA file or nothing."""
    path = Path(config.start_from) if config.start_from else None
    return path if path is not None and (checkpoint.is_checkpoint(path) or checkpoint.step_of(path) >= 0) else None


def _seed(config: TrainConfig, resumed: checkpoint.State | None) -> int:
    if config.seed >= 0:
        return config.seed
    return int(resumed.settings["seed"]) if resumed else secrets.randbelow(2**32)


def _warnings(images: ImageSet, crops: tuple[Crop, ...], order: Order, config: TrainConfig) -> tuple[str, ...]:
    found = []
    small = [picture.name for picture, crop in zip(images.pictures, crops, strict=True) if crop.small]
    if small:
        side = config.resolution
        listed = ", ".join(small[:3]) + (", ..." if len(small) > 3 else "")
        found.append(f"{len(small)} of {len(crops)} pictures have fewer pixels than {side}x{side} and are trained at their own size: {listed}")
    if order.batch_size > order.items:
        found.append(f"batch_size {order.batch_size} is more than the {order.items} pictures of an epoch: every batch holds all of them")
    if not any(picture.caption for picture in images.pictures):
        found.append("no picture has a caption: what they share and what they show cannot be told apart")
    if config.validation_fraction and len(images.pictures) - len(order.buckets) < FEW_HELD:
        found.append(f"{len(images.pictures) - len(order.buckets)} held-out pictures tell little: the interval of their loss is wide; 4 or more are better")
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
