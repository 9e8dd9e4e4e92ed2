"""What a picture starts from: another picture, a part of it, a mix of two seeds."""

from typing import ClassVar

from pydantic import Field

from studio.config.settings import Settings


class Starting(Settings):
    TITLE: ClassVar[str] = "From a picture"

    init_image: str | None = Field(default=None, min_length=1, description="Picture to start from: a file, a picture of the gallery, or one that was sent in")
    strength: float = Field(default=0.6, ge=0, le=1, description="How far to leave init_image: 0 keeps it, 1 forgets it")
    mask: str | None = Field(default=None, min_length=1, description="Where init_image is drawn anew: white is drawn, black stays as it is")
    mask_blur: int = Field(default=4, ge=0, le=256, description="Soft edge of the mask in pixels")
    variation_seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Second seed, to vary a picture a little")
    variation_strength: float = Field(default=0.0, ge=0, le=1, description="How much of the second seed's noise is mixed in; 0 is none")
