"""What stands in the header of a file that is given away: completed for its readers, cleared of what is private, edited. Pure."""

import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from studio.config import safe_stem
from studio.errors import InputError
from studio.families import FAMILIES
from studio.lora.adapter import Adapter, LowRank
from studio.lora.formats.identity import stated_family

THUMBNAIL = "modelspec.thumbnail"
# What a person edits, and the key that carries it.
FIELDS = {
    "title": "modelspec.title",
    "description": "modelspec.description",
    "author": "modelspec.author",
    "license": "modelspec.license",
    "trigger": "modelspec.trigger_phrase",
    "tags": "modelspec.tags",
    "usage_hint": "modelspec.usage_hint",
    "default_weight": "modelspec.lora_default_weight",
    "merged_from": "modelspec.merged_from",
}
# Computed from the tensors, or read as settings by loaders: not for editing.
COMPUTED = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "lora_adapter_metadata", "wd_on_output", "format")
_PATH = re.compile(r"(?<![\w./:])(?:~?/|[A-Za-z]:[\\/]+|\\\\)(?:[^/\\:'\",;()\n]{1,120}[/\\]+)+(?=[^\s/\\])")


def completed(metadata: Mapping[str, str], adapter: Adapter, stem: str) -> dict[str, str]:
    """The words of a file with what other programs must find in it, true for these tensors, and nothing private."""
    facts = FAMILIES[adapter.family].facts
    words = {key: value for key, value in public(metadata).items() if key not in COMPUTED}
    ranks = [layer.rank for layer in adapter.layers.values()]
    alphas = {layer.alpha for layer in adapter.layers.values()}
    version = words.get("ss_base_model_version", "")
    head, mark, _ = facts.kohya_version.partition("_")  # A1111 wants to see sdxl_ at the beginning
    if stated_family({"ss_base_model_version": version}) != adapter.family or not version.startswith(head + mark if mark else ""):
        words["ss_base_model_version"] = facts.kohya_version
    if stated_family({"modelspec.architecture": words.get("modelspec.architecture", "")}) != adapter.family:
        words |= {"modelspec.architecture": facts.modelspec, "modelspec.implementation": facts.implementation}
    missing = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": facts.implementation,
        "modelspec.title": stem,
        "ss_network_module": facts.kohya_module,
        "ss_network_dim": str(max(ranks, default=0)),
        "ss_network_alpha": str(alphas.pop() if len(alphas) == 1 else float(max(ranks, default=0))),
    }
    if not all(isinstance(layer, LowRank) for layer in adapter.layers.values()):
        words["ss_network_module"] = "lycoris.kohya"
    # Web UIs call the LoRA by ss_output_name, so it must be what the file is called.
    return {**missing, **words, "ss_v2": "False", "ss_output_name": safe_stem(stem)}


def public(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata with every absolute path, wherever it stands, cut down to its last part."""
    return {key: value if key == THUMBNAIL else _without_paths(value) for key, value in metadata.items()}


def edited(metadata: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """The metadata with changed entries: by their names in FIELDS or as they stand in the file; None takes an entry out. Raises InputError."""
    found = dict(metadata)
    for name, value in changes.items():
        key = FIELDS.get(name, name)
        if key in COMPUTED:
            raise InputError(f"{key} follows from the tensors and cannot be edited; leave it out")
        if not re.fullmatch(r"[\x21-\x7e]{1,200}", key):
            raise InputError(f"entry {key[:40]!r}: names in a header are plain characters without spaces")
        if value is None or value == "":
            found.pop(key, None)
        elif key == FIELDS["default_weight"] and not _weight(value):
            raise InputError(f"default weight {value!r}: name a number from -100 to 100")
        else:
            found[key] = value
    return public(found)


def _weight(text: str) -> bool:
    try:
        return -100 <= float(text) <= 100
    except ValueError:
        return False


def _without_paths(value: str) -> str:
    if value[:1] in "{[":
        try:
            return json.dumps(_inside(json.loads(value)), ensure_ascii=False)
        except (ValueError, RecursionError):
            pass
    return _text(value)


def _inside(value: Any) -> Any:
    if isinstance(value, dict):
        return {_text(key): _inside(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_inside(item) for item in value]
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    if "\n" not in text and len(text) < 1000 and (PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()):
        return re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    return _PATH.sub("", text)
