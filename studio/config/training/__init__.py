"""Settings of a training run, in groups: each group is a class of its own, and the form shows it under its title."""

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, model_validator

from studio.config.bases import BaseChoice
from studio.config.settings import Settings
from studio.config.training.judging import Judging
from studio.config.training.keeping import Keeping
from studio.config.training.length import Length
from studio.config.training.memory import Memory
from studio.config.training.network import Network
from studio.config.training.newwords import NewWords
from studio.config.training.objective import Objective
from studio.config.training.optimization import Optimization
from studio.config.training.showing import Showing
from studio.config.values import Name


class Subject(Settings):
    TITLE: ClassVar[str] = "Subject"

    images: str = Field(min_length=1, description="Image set: a name in the studio, or a folder of pictures")
    name: Name = Field(default="my-lora", description="Name of the run and of the exported file; letters, digits, . _ -")
    output: str | None = Field(default=None, description="Also write the finished file here")
    trigger: str = Field(default="", max_length=200, description="Word that calls the LoRA; put in front of captions that lack it")


# pydantic collects fields from the last base to the first, so that the settings stand in the order of GROUPS
class TrainConfig(Keeping, Judging, Memory, Objective, Optimization, Showing, NewWords, Network, Length, Subject, BaseChoice):
    GROUPS: ClassVar[tuple[type[Settings], ...]] = (
        *(BaseChoice, Subject, Length, Network, NewWords, Showing),
        *(Optimization, Objective, Memory, Judging, Keeping),
    )
    ALTERNATIVES: ClassVar[Mapping[str, str]] = {"steps": "epochs"}

    @property
    def reads_live(self) -> bool:
        """Whether captions are encoded anew in every step, because what encodes them is trained."""
        return self.text_encoder_learning_rate is not None or bool(self.new_words)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.network == "none" and not self.new_words:
            raise ValueError("network none trains new words alone and there are none: name them in new_words, or set network to lora")
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs are both given: name one of them")
        return self

    @model_validator(mode="after")
    def _ranks_to_probe(self) -> Self:
        if self.rank_probe and self.network in ("loha", "lokr"):
            raise ValueError(f"rank_probe trims ranks, and a {self.network} has none: leave it out, or set network to lora, dora or adalora")
        return self
