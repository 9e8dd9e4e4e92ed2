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
from studio.training.words import with_trigger, without_separator


@dataclass(frozen=True)
class Shown:
    """One picture at one size. `captions`: one of them is drawn each time."""

    picture: Picture
    crop: Crop
    captions: tuple[str, ...]
    repeats: int = 1
    weight: float = 1.0  # of its loss
    prior: bool = False  # it is to be predicted as the base alone does
    whole: str = ""  # what a held-out picture is judged under where parts of captions are left out; empty: the first caption
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
        own = [(one, [without_separator(line, config.keep_separator) for line in one.picture.captions or (one.picture.caption,)]) for one in found]
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
                whole = whole_caption(picture, config, trigger) if config.tag_dropout else ""
                found.append(Shown(picture, crop, captions_of(picture, config, trigger), one.repeats, whole=whole))
    return found


def captions_of(picture: Picture, config: TrainConfig, trigger: str) -> tuple[str, ...]:
    """All texts under which a picture may be shown, without the empty one of caption dropout."""
    called = [with_trigger(line, trigger) for line in _lines(picture, config)]
    if not config.caption_shuffle and not config.tag_dropout:
        return tuple(dict.fromkeys(without_separator(line, config.keep_separator) for line in called))
    return tuple(dict.fromkeys(text for line in called for text in varied(line, config)))


def whole_caption(picture: Picture, config: TrainConfig, trigger: str) -> str:
    """The first caption with nothing left out: what a picture is judged under."""
    return captions_of(picture, config.model_copy(update={"tag_dropout": 0.0}), trigger)[0]


def varied(caption: str, config: TrainConfig) -> Iterator[str]:
    """Forms of a caption: the parts between commas in another order, or some of them left out, those at the front in place.

    They follow from caption and seed alone.
    """
    front, rest = _kept(caption, config)
    order, chance = random.Random(f"shuffle {config.seed} {caption}"), random.Random(f"thin {config.seed} {caption}")
    for _ in range(config.caption_variants):
        if config.caption_shuffle:
            order.shuffle(rest)
        left = [part for part in rest if not config.tag_dropout or chance.random() >= config.tag_dropout]
        yield ", ".join([*front, *left])


def _kept(caption: str, config: TrainConfig) -> tuple[list[str], list[str]]:
    """The parts that stay, and the others."""
    sign = config.keep_separator
    before, found, after = caption.partition(sign) if sign else (caption, "", "")
    if found:
        return _parts(before), _parts(without_separator(after, sign))
    parts = _parts(caption)
    return parts[: config.keep_tokens], parts[config.keep_tokens :]


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _lines(picture: Picture, config: TrainConfig) -> Sequence[str]:
    return picture.captions if config.caption_lines == "draw" and picture.captions else (picture.caption,)


def without_trigger(captions: Sequence[str], trigger: str) -> tuple[str, ...]:
    """The captions without the parts that are the trigger."""
    if not trigger:
        return tuple(captions)
    return tuple(", ".join(part.strip() for part in text.split(",") if part.strip().casefold() != trigger.casefold()) for text in captions)


def _prior(one: Shown, config: TrainConfig) -> tuple[str, ...]:
    return (config.prior_caption,) if config.prior_caption and config.prior_prediction else one.captions
