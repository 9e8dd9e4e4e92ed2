"""What the model is shown: which pictures, how often, at which sizes, under which words."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

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
    keep_tokens: int = Field(default=1, ge=0, le=100, description="Parts at the front that shuffling leaves in place, as the trigger")
    caption_variants: int = Field(default=8, ge=2, le=1000, description="Orders of a shuffled caption that are encoded; each time one of them is drawn")
    masked_loss: bool = Field(
        default=False, description="Learn from the white of masks only: NAME-masklabel.png beside the picture, masks/NAME.png, or the picture's transparency"
    )
    unmasked_weight: float = Field(default=0.0, ge=0, le=1, description="How much the black of a mask still counts")
    regularization_images: Sets = Field(default=(), max_length=32, description="Sets that keep the base as it was, by commas; NAME=2 shows them twice an epoch")
    prior_prediction: bool = Field(
        default=False, description="Learn what the base alone predicts for regularisation pictures; without any, for your own without the trigger"
    )
    prior_caption: str = Field(default="", max_length=1000, description="Caption of prior prediction, such as the word for the kind of thing; empty: your own")
    prior_weight: float = Field(default=1.0, gt=0, le=10, description="How much regularisation and prior prediction count")
