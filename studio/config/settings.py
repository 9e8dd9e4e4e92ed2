"""What every settings class shares: how it is built, why it refuses, how empty settings are filled."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from studio.errors import SettingsError


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_strip_whitespace=True)
    TITLE: ClassVar[str] = ""  # of its group in a form
    ALTERNATIVES: ClassVar[Mapping[str, str]] = {}  # setting -> the one that replaces it, so that no default is filled in


S = TypeVar("S", bound=Settings)


def build(kind: type[S], values: Mapping[str, Any]) -> S:
    """The settings object, or a SettingsError of one line naming the setting, the rule and the nearest known name."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise SettingsError(_one_line(kind, error)) from None


def _one_line(kind: type[Settings], error: ValidationError) -> str:
    import difflib

    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "settings"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where, kind.model_fields, n=1)
        return f"unknown setting {where!r}" + (f"; did you mean {near[0]!r}?" if near else "; see --help for all of them")
    if first["type"] == "missing":
        return f"setting {where!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # a rule about several settings, which names them itself
        return message
    shown = "" if isinstance(first["input"], dict) else f" {first['input']!r}"
    return f"setting {where}{shown}: {message[0].lower()}{message[1:]}"


def resolve(config: S, *defaults: Mapping[str, Any]) -> S:
    """Fill every setting that is None from the first mapping that has it (base habits before family defaults)."""
    found: dict[str, Any] = {}
    for field in type(config).model_fields:
        if getattr(config, field) is None and getattr(config, config.ALTERNATIVES.get(field, field)) is None:
            value = next((mapping[field] for mapping in defaults if mapping.get(field) is not None), None)
            if value is not None:
                found[field] = value
    return build(type(config), {**config.model_dump(), **found}) if found else config
