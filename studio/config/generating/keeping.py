"""How pictures are written, and what is shown while they are made."""

from typing import ClassVar, Literal

from pydantic import Field

from studio.config.settings import Settings

PictureFormat = Literal["png", "jpeg", "webp"]


class Keeping(Settings):
    TITLE: ClassVar[str] = "Files"

    format: PictureFormat = Field(default="png", description="Picture file; every one carries its settings, and PNG loses nothing")
    quality: int = Field(default=92, ge=1, le=100, description="Quality of JPEG and WebP; WebP at 100 loses nothing")
    live_preview: float = Field(default=0.5, ge=0, le=60, description="Seconds between rough previews while a picture is drawn; 0 shows none")
