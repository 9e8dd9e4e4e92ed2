"""Settings of a picture, in groups: each group is a class of its own, and the form shows it under its title."""

from typing import ClassVar, Self

from pydantic import model_validator

from studio.config.bases import BaseChoice
from studio.config.generating.drawing import Drawing
from studio.config.generating.enlarging import Enlarging
from studio.config.generating.grid import Grid
from studio.config.generating.keeping import Keeping
from studio.config.generating.running import Running
from studio.config.generating.starting import Starting
from studio.config.generating.words import Words
from studio.config.settings import Settings


# pydantic collects fields from the last base to the first, so that the settings stand in the order of GROUPS
class GenerateConfig(Running, Keeping, Grid, Enlarging, Starting, Drawing, Words, BaseChoice):
    GROUPS: ClassVar[tuple[type[Settings], ...]] = (BaseChoice, Words, Drawing, Starting, Enlarging, Grid, Keeping, Running)

    @model_validator(mode="after")
    def _a_mask_of_something(self) -> Self:
        if self.mask and not self.init_image:
            raise ValueError("mask says where a picture is drawn anew: name the picture as init_image")
        return self
