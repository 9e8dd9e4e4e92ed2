"""What the model is shown: which pictures, how often, at which sizes, under which words."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from studio.config.settings import Settings
from studio.config.values import words
from studio.errors import SettingsError

Sets = Annotated[tuple[str, ...], BeforeValidator(words)]
Sides = Annotated[tuple[Annotated[int, Field(ge=64, le=4096)], ...], BeforeValidator(words)]


def repeats_of(names: Sequence[str]) -> dict[str, int]:
    """Set -> how often an epoch shows it, from NAME and NAME=3. A path may hold '='; the last one counts only before a number."""
    found: dict[str, int] = {}
    for text in names:
        name, equals, number = text.rpartition("=")
        given = equals and number.isdigit()
        if given and not int(number):
            raise SettingsError(f"image set {text!r}: shown no time at all it is none; leave it out")
        found[name if given else text] = int(number) if given else 1
    return found


class Showing(Settings):
    TITLE: ClassVar[str] = "Pictures and captions"

    more_images: Sets = Field(default=(), max_length=32, description="Further image sets, by commas; NAME=3 shows each of its pictures three times an epoch")
    more_resolutions: Sides = Field(default=(), max_length=8, description="Further sides, by commas; every picture is shown at each, where it is large enough")
    flip: bool = Field(default=False, description="Also train on mirrored pictures; not for faces with a side parting, text or logos")
    caption_dropout: float = Field(default=0.0, ge=0, le=1, description="Share of steps that see an empty caption")
    caption_lines: Literal["join", "draw"] = Field(
        default="join", description="A caption of several lines, or NAME.1.txt beside NAME.txt: one text, or several of which one is drawn each time"
    )
    caption_shuffle: bool = Field(default=False, description="Show the parts between commas in another order each time; for tags")
    tag_dropout: float = Field(default=0.0, ge=0, le=0.9, description="Share of the parts between commas that is left out each time, each by itself; for tags")
    keep_tokens: int = Field(default=1, ge=0, le=100, description="Parts at the front that are neither shuffled nor left out, as the trigger")
    keep_separator: str = Field(
        default="", max_length=16, description="Sign in captions, such as |||, up to which all parts are kept, instead of keep_tokens; it is not read out"
    )
    caption_variants: int = Field(
        default=8, ge=2, le=1000, description="Forms of a shuffled or thinned caption that are encoded; each time one of them is drawn"
    )
    masked_loss: bool = Field(
        default=False, description="Learn from the white of masks only: NAME-masklabel.png beside the picture, masks/NAME.png, or the picture's transparency"
    )
    unmasked_weight: float = Field(default=0.0, ge=0, le=1, description="How much the black of a mask still counts")
    masked_prior_weight: float = Field(
        default=0.0, ge=0, le=10, description="How much the black of a mask is held to what the base alone predicts there (masked prior preservation); 0 is off"
    )
    regularization_images: Sets = Field(default=(), max_length=32, description="Sets that keep the base as it was, by commas; NAME=2 shows them twice an epoch")
    prior_prediction: bool = Field(
        default=False, description="Learn what the base alone predicts for regularisation pictures; without any, for your own without the trigger"
    )
    prior_caption: str = Field(default="", max_length=1000, description="Caption of prior prediction, such as the word for the kind of thing; empty: your own")
    prior_weight: float = Field(default=1.0, gt=0, le=10, description="How much regularisation and prior prediction count")

    @model_validator(mode="after")
    def _black_of_masks(self) -> Self:
        if self.masked_prior_weight and not self.masked_loss:
            raise ValueError("masked_prior_weight is about the black of masks: set masked_loss too, or leave it out")
        if self.masked_prior_weight and self.unmasked_weight:
            raise ValueError("unmasked_weight learns the black of masks, masked_prior_weight holds it as it was: name one of them")
        return self
