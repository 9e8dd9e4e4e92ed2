"""How a picture becomes larger than what its base draws in one piece."""

from typing import ClassVar

from pydantic import Field

from studio.config.settings import Settings


class Enlarging(Settings):
    TITLE: ClassVar[str] = "Larger"

    hires_scale: float | None = Field(default=None, ge=1, le=8, description="Draw the picture again at so many times the size, for finer detail; empty is off")
    hires_strength: float = Field(default=0.5, ge=0, le=1, description="How far the second drawing leaves the first")
    hires_steps: int | None = Field(default=None, ge=1, le=500, description="Steps of the second drawing; empty is as many as the first")
    upscale: float | None = Field(default=None, ge=1, le=8, description="Enlarge the finished picture so many times, redrawn in tiles; empty is off")
    upscale_strength: float = Field(default=0.3, ge=0, le=1, description="How far the tiles leave the enlarged picture")
    tile: int | None = Field(default=None, ge=64, le=4096, description="Side of a tile in pixels; empty is the size that the base draws best")
    tile_overlap: int = Field(default=64, ge=0, le=1024, description="Pixels that neighbouring tiles share and blend over")
