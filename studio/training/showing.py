"""What a run shows: pictures of all its sets at all its sizes, each with its captions, its part in the loss and how often."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from studio.config import TrainConfig
from studio.data import buckets
from studio.data.buckets import Crop
from studio.data.images import Companion, ImageSet, Picture
from studio.data.pairs import pairs_of
from studio.errors import SettingsError
from studio.training.words import with_trigger


@dataclass(frozen=True)
class Shown:
    """One picture at one size. `captions`: one of them is drawn each time."""

    picture: Picture
    crop: Crop
    captions: tuple[str, ...]
    repeats: int = 1
    weight: float = 1.0  # of its loss
    prior: bool = False  # it is to be predicted as the base alone does
    rival: Picture | None = None  # the worse picture of a pair

    def told(self) -> list[Any]:
        """What a resumed run must find again; as short as it was for a plain picture before there were others."""
        short = [self.picture.name, self.picture.sha256, self.captions[0]]
        more = [*self.captions[1:], self.picture.mask_sha256, self.weight, self.prior, *([self.rival.sha256] if self.rival else [])]
        return short if more == ["", 1.0, False] else [*short, *more]


def shown(images: ImageSet, config: TrainConfig, multiple: int) -> list[Shown]:
    """Everything, in a fixed order: the main set, further ones, regularisation. Raises ImageError for a picture too small."""
    trigger = config.trigger or images.trigger
    if config.preference_beta is not None:
        return _pairs(images, config, trigger, multiple)
    found = _of_set(Companion(images, config.repeats), config, trigger, multiple)
    for more in images.companions:
        if not more.regular:
            found += _of_set(replace(more, repeats=more.repeats * config.repeats), config, config.trigger or more.images.trigger, multiple)
    regular = [more for more in images.companions if more.regular]
    for more in regular:
        kept = _of_set(replace(more, repeats=more.repeats * config.repeats), config, "", multiple)
        found += [replace(one, weight=config.prior_weight, prior=config.prior_prediction, captions=_prior(one, config)) for one in kept]
    if config.prior_prediction and not regular:
        own = [(one, one.picture.captions or (one.picture.caption,)) for one in found]
        bare = [replace(one, captions=without_trigger(words, trigger)) for one, words in own]
        found += [replace(one, weight=config.prior_weight, prior=True, captions=_prior(one, config)) for one in bare]
    return found


def _pairs(images: ImageSet, config: TrainConfig, trigger: str, multiple: int) -> list[Shown]:
    if images.companions or config.prior_prediction or config.masked_loss:
        wrong = "masked_loss" if config.masked_loss else "prior_prediction" if config.prior_prediction else "more_images and regularization_images"
        raise SettingsError(f"preference_beta learns from the pairs of one set: leave {wrong} out")
    rivals = {better.name: worse for better, worse in pairs_of(images)}
    better = replace(images, pictures=tuple(picture for picture in images.pictures if picture.name in rivals))
    found = _of_set(Companion(better, config.repeats), config, trigger, multiple)
    return [replace(one, rival=rivals[one.picture.name]) for one in found]


def _of_set(one: Companion, config: TrainConfig, trigger: str, multiple: int) -> list[Shown]:
    sizes = {picture.name: (picture.width, picture.height) for picture in one.images.pictures}
    found: list[Shown] = []
    for side in dict.fromkeys((config.resolution or 0, *config.more_resolutions)):
        crops = buckets.plan(sizes, side**2, multiple)
        for picture, crop in zip(one.images.pictures, crops.values(), strict=True):
            # A picture smaller than two sizes would be shown as the very same twice.
            if not any(other.picture is picture and other.crop.bucket == crop.bucket for other in found):
                found.append(Shown(picture, crop, captions_of(picture, config, trigger), one.repeats))
    return found


def captions_of(picture: Picture, config: TrainConfig, trigger: str) -> tuple[str, ...]:
    """All texts under which a picture may be shown, without the empty one of caption dropout."""
    lines = picture.captions if config.caption_lines == "draw" and picture.captions else (picture.caption,)
    called = [with_trigger(line, trigger) for line in lines]
    if not config.caption_shuffle:
        return tuple(dict.fromkeys(called))
    orders = [text for line in called for text in shuffled(line, config.caption_variants, config.keep_tokens, config.seed)]
    return tuple(dict.fromkeys(orders))


def shuffled(caption: str, n: int, keep: int, seed: int) -> Iterator[str]:
    """Up to n different orders of the parts between commas, the first `keep` in place; they follow from caption and seed alone."""
    parts = [part.strip() for part in caption.split(",") if part.strip()]
    front, rest = parts[:keep], parts[keep:]
    draw = random.Random(f"shuffle {seed} {caption}")
    for _ in range(n):
        draw.shuffle(rest)
        yield ", ".join([*front, *rest])


def without_trigger(captions: Sequence[str], trigger: str) -> tuple[str, ...]:
    """The captions without the parts that are the trigger."""
    if not trigger:
        return tuple(captions)
    return tuple(", ".join(part.strip() for part in text.split(",") if part.strip().casefold() != trigger.casefold()) for text in captions)


def _prior(one: Shown, config: TrainConfig) -> tuple[str, ...]:
    return (config.prior_caption,) if config.prior_caption and config.prior_prediction else one.captions
