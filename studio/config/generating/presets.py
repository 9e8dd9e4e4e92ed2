"""A preset: words around a prompt and settings that belong together, under a name."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from studio.config.generating import GenerateConfig
from studio.config.settings import Settings, build
from studio.errors import SettingsError

OWN = frozenset({"prompt", "negative_prompt", "seed", "init_image", "mask"})  # of one picture, never of a preset
PLACE = "{prompt}"


class Preset(Settings):
    """Words around a prompt, and settings."""

    name: str = Field(pattern=r"^[^\W_][\w .\-]{0,59}$", description="What it is called: letters, digits, spaces, . _ -")
    prompt: str = Field(default="", max_length=4000, description="Added to the prompt, or put around it where {prompt} stands")
    negative_prompt: str = Field(default="", max_length=4000, description="Added to the negative prompt")
    settings: dict[str, Any] = Field(default={}, description="Settings by their names")

    @field_validator("settings")
    @classmethod
    def _known(cls, settings: dict[str, Any]) -> dict[str, Any]:
        own = sorted(OWN & settings.keys())
        if own:
            raise ValueError(f"{own[0]} belongs to one picture, not to a preset")
        try:
            build(GenerateConfig, settings)
        except SettingsError as error:
            raise ValueError(str(error)) from None
        return settings

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.prompt or self.negative_prompt or self.settings):
            raise ValueError(f"preset {self.name!r} has neither words nor settings")
        return self

    def applied(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings with this preset's under them where they say nothing, and its words around theirs, once."""
        words = {name: _around(str(values.get(name) or ""), getattr(self, name)) for name in ("prompt", "negative_prompt") if getattr(self, name)}
        return {**self.settings, **{name: value for name, value in values.items() if value not in (None, "", ())}, **words}


def _around(words: str, snippet: str) -> str:
    if PLACE in snippet:
        head, _, tail = snippet.partition(PLACE)
        return words if words.startswith(head) and words.endswith(tail) else f"{head}{words}{tail}"
    if snippet in words:
        return words
    return f"{words}, {snippet}" if words else snippet
