"""What is drawn, and with which LoRAs."""

from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field

from studio.config.settings import Settings
from studio.config.values import LoraWeight, parse_loras


class Words(Settings):
    TITLE: ClassVar[str] = "Prompt"

    prompt: str = Field(default="", max_length=20_000, description="What to draw")
    negative_prompt: str = Field(
        default="", max_length=20_000, description="What to avoid; bases with guided distillation ignore it unless true_cfg is above 1"
    )
    loras: Annotated[tuple[LoraWeight, ...], BeforeValidator(parse_loras)] = Field(
        default=(), max_length=64, description="The stack: adapters and their weights"
    )
