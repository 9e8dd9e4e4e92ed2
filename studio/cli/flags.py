"""Settings classes as command line flags, and flags back as settings."""

import argparse
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic.fields import FieldInfo

from studio.config import S, Settings, build, parse_size
from studio.errors import SettingsError

SHORTHANDS = ("size",)

# What `library edit` changes, and what it means.
EDITABLE = {
    "title": "what it is called",
    "description": "what it does, Markdown",
    "author": "who made it",
    "license": "under which licence it may be used",
    "trigger": "the word that calls it",
    "tags": "comma-separated words it is found by",
    "usage_hint": "how to use it, in a sentence",
    "default_weight": "the weight that suits it, a number",
}


def flag_of(setting: str) -> str:
    return "--" + setting.replace("_", "-")


def add_settings(parser: argparse.ArgumentParser, kind: type[Settings], *, leave_out: tuple[str, ...] = ()) -> None:
    """One flag per setting. Values stay text: the settings class checks them, so that every front end says the same."""
    for name, field in kind.model_fields.items():
        if name in leave_out:
            continue
        options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": _help(field)}
        names = [flag_of(name)]
        if bool in (field.annotation, *typing.get_args(field.annotation)):
            options["action"] = argparse.BooleanOptionalAction
        elif name == "loras":
            names = ["--lora", "--loras"]
            options |= {"action": "append", "metavar": "NAME_OR_FILE=WEIGHT"}
        elif _is_tuple(field):
            options |= {"action": "append", "metavar": "TEXT"}
        else:
            options["metavar"] = _metavar(name, field)
        parser.add_argument(*names, **options)
    if {"width", "height"} <= kind.model_fields.keys():
        parser.add_argument("--size", default=argparse.SUPPRESS, metavar="WxH", help="shorthand for width and height, for example 1024x1024")


def settings_from(kind: type[S], arguments: argparse.Namespace, under: Mapping[str, Any] = MappingProxyType({})) -> S:
    """The settings of CONFIG.toml, if one is named, with the flags on top; `under` is what counts where neither says anything."""
    given = vars(arguments)
    values: dict[str, Any] = dict(_read_toml(Path(given["config"]))) if given.get("config") else {}
    flags = {name: value for name, value in given.items() if name in kind.model_fields}
    if "size" in given:
        for name in ("width", "height"):
            if name in flags:
                raise SettingsError(f"--size and {flag_of(name)} are both given: name one of them")
        flags["width"], flags["height"] = parse_size(given["size"])
    return build(kind, {**under, **values, **flags})


def locate(value: str, known: Callable[[str], bool]) -> str:
    """A name of the studio stays as it is; anything else that exists here becomes an absolute path, because the worker runs elsewhere."""
    path = Path(value).expanduser()
    plain = path.name == value and path.suffix != ".safetensors"
    return value if (plain and known(value)) or not path.exists() else str(path.absolute())


def _read_toml(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such settings file") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is not valid TOML: {error}") from None


def _is_tuple(field: FieldInfo) -> bool:
    return typing.get_origin(field.annotation) is tuple


def _choices(field: FieldInfo) -> tuple[str, ...]:
    return typing.get_args(field.annotation) if typing.get_origin(field.annotation) is Literal else ()


def _metavar(name: str, field: FieldInfo) -> str:
    choices = _choices(field)
    if choices:
        return "|".join(choices)
    kinds = [kind for kind in typing.get_args(field.annotation) if kind is not types.NoneType] or [field.annotation]
    return {int: "N", float: "X"}.get(kinds[0], name.upper())


def _help(field: FieldInfo) -> str:
    """The setting's own words, with its default where it has one."""
    words = (field.description or "").replace("%", "%%")
    default = field.default
    shown = default not in (None, "", ()) and not field.is_required() and not isinstance(default, bool)
    return f"{words} (default {default})" if shown else words
