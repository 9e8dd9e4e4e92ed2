"""A base model by name: built in, registered, a folder, one file, or a hub id that is already on this machine."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from studio import metadata
from studio.errors import BaseError, FormatError
from studio.families import FAMILIES
from studio.families.base import Base
from studio.families.parts import read_json

BUILTIN = Path(__file__).parents[2] / "assets" / "bases"
HABITS_FILE = "studio.json"
ARCHITECTURE = "lora_studio.architecture"  # metadata of a single file made from a base that ships with the project: its name


def find(name: str, registered: Mapping[str, Path] | None = None, vae: str | None = None, encoders: str | None = None) -> Base:
    """The base of that name, with the parts that are named to come from elsewhere. Raises BaseError with the way out."""
    base = _find(name, registered or {})
    if vae:
        base = replace(base, vae=_part(vae, registered or {}, "vae"))
    if encoders:
        base = replace(base, encoders=_part(encoders, registered or {}, "encoders"))
    return base


def builtin() -> list[Base]:
    """The bases that ship with the project."""
    return [replace(identify(folder), name=folder.name, builtin=True) for folder in sorted(BUILTIN.iterdir()) if (folder / "model_index.json").is_file()]


def identify(path: Path) -> Base:
    """What a diffusers folder or a .safetensors file is. Raises BaseError if it is no base model of a known family."""
    if path.is_dir():
        return _identify_folder(path)
    if path.is_file():
        return _identify_file(path)
    raise BaseError(f"{path}: no such file or folder; name a base from `base list`, a diffusers folder or a .safetensors file")


def download(repo: str, into: Path, token: str | None = None, on_progress: Callable[[int, int], None] | None = None) -> Base:
    """Fetch a diffusers model from the hub into that folder; going on after a break is cheap. on_progress gets bytes done and in all.

    Raises BaseError in one line: gated, missing, no network, of another kind, disk full.
    """
    from studio.families import hub

    hub.fetch(repo, into, token, on_progress or (lambda done, total: None))
    return identify(into)


def _find(name: str, registered: Mapping[str, Path]) -> Base:
    own = BUILTIN / name
    if name == Path(name).name and (own / "model_index.json").is_file():
        return replace(identify(own), name=name, builtin=True)
    if name in registered:
        return replace(identify(registered[name]), name=name)
    path = Path(name).expanduser()
    if path.exists():
        return identify(path)
    if _is_hub_id(name):
        folder = _cached(name)
        if folder is not None:
            return replace(identify(folder), name=name, kind="hub")
        raise BaseError(f"base {name!r} is not on this machine; get it with: lora-studio base download {name}")
    known = ", ".join([*(folder.name for folder in sorted(BUILTIN.iterdir()) if folder.is_dir()), *registered])
    raise BaseError(f"base {name!r} is not known; known are {known}; or name a diffusers folder, a hub id or a .safetensors file")


def _part(name: str, registered: Mapping[str, Path], setting: str) -> Path:
    """A folder or file by path, or the place of a base by its name."""
    path = Path(name).expanduser()
    if path.exists():
        return path.resolve()
    try:
        return _find(name, registered).path
    except BaseError:
        raise BaseError(f"{setting} {name!r} is neither a file, a folder nor a known base; see `base list`") from None


def _is_hub_id(name: str) -> bool:
    owner, slash, model = name.partition("/")
    return bool(slash and owner and model) and "/" not in model and not name.startswith((".", "~")) and not model.endswith(".safetensors")


def _cached(repo: str) -> Path | None:
    """The newest snapshot of a hub model in the Hugging Face cache, if it is there."""
    from huggingface_hub import constants

    root = Path(constants.HF_HUB_CACHE) / ("models--" + repo.replace("/", "--"))
    reference = root / "refs" / "main"
    if not reference.is_file():
        return None
    folder = root / "snapshots" / reference.read_text().strip()
    return folder if (folder / "model_index.json").is_file() else None


def _identify_folder(folder: Path) -> Base:
    if not (folder / "model_index.json").is_file():
        raise BaseError(f"{folder}: is no base model (no model_index.json); a diffusers folder or one .safetensors file is needed")
    index = read_json(folder / "model_index.json")
    for family in FAMILIES.values():
        habits = family.recognise_folder(folder, index)
        if habits is not None:
            return _with_habits(Base(folder.name, family.facts.name, "folder", folder.resolve(), bytes=_folder_bytes(folder)), habits, folder / HABITS_FILE)
    raise BaseError(f"{folder}: {index.get('_class_name', 'this model')} is not supported; {_supported()}")


def _identify_file(path: Path) -> Base:
    if path.suffix != ".safetensors":
        raise BaseError(f"{path.name}: only .safetensors files are read; pickled checkpoints can run code, convert it first")
    try:
        header = metadata.read_header(path)
    except FormatError as error:
        raise BaseError(str(error)) from None
    shapes = header.shapes
    for family in FAMILIES.values():
        habits = family.recognise_file(shapes)
        if habits is not None:
            habits |= _of_builtin(header.metadata.get(ARCHITECTURE, ""))
            return _with_habits(Base(path.stem, family.facts.name, "file", path.resolve(), bytes=path.stat().st_size), habits, path.with_suffix(".studio.json"))
    raise BaseError(f"{path.name}: {_other_kind(shapes)}; {_supported()}")


def _of_builtin(name: str) -> dict[str, Any]:
    """Habits of a base that ships with the project, and its folder as that of a single file's sizes and tokenizers."""
    folder = BUILTIN / name
    if not name or name != Path(name).name or not (folder / "model_index.json").is_file():
        return {}
    own = read_json(folder / HABITS_FILE)
    return {**{key: value for key, value in own.items() if key not in ("title", "licence")}, "architecture": name}


def _other_kind(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What a file that is no base of ours seems to be."""
    names = list(shapes)
    if any("lora_" in name or ".alpha" in name for name in names):
        return "is a LoRA, not a base model; add it to the library instead"
    if any(name.startswith("cond_stage_model.") for name in names):
        return "is a Stable Diffusion 1 or 2 checkpoint"
    if any(name.startswith(("double_blocks.", "model.diffusion_model.double_blocks.")) for name in names):
        return "is a FLUX transformer of another kind"
    if any(name.startswith("model.diffusion_model.") for name in names):
        return "is a checkpoint without the text encoders of SDXL"
    if any(name.startswith(("encoder.", "decoder.", "first_stage_model.")) for name in names):
        return "is a VAE or a text encoder, not a base model; a VAE can be named with --vae"
    return "is no base model that the studio knows"


def _supported() -> str:
    return "supported are " + " and ".join(family.facts.title for family in FAMILIES.values())


def _with_habits(base: Base, found: dict[str, Any], file: Path) -> Base:
    """Habits found in the model itself, overridden by the studio.json beside it."""
    own = read_json(file) if file.is_file() else {}
    merged: dict[str, Any] = {**found, **{key: value for key, value in own.items() if key not in ("title", "licence")}}
    return replace(base, habits=merged, title=str(own.get("title", base.name)), licence=str(own.get("licence", "") or _licence(base.path)))


def _licence(folder: Path) -> str:
    """The licence line of a model card, if there is one."""
    card = folder / "README.md"
    if not folder.is_dir() or not card.is_file():
        return ""
    for line in card.read_text(encoding="utf-8", errors="replace").splitlines()[:60]:
        key, _, value = line.partition(":")
        if key.strip() in ("license_name", "license"):
            return json.dumps(value.strip())[1:-1]
    return ""


def _folder_bytes(folder: Path) -> int:
    return sum((Path(root) / name).stat().st_size for root, _, names in os.walk(folder) for name in names if not name.startswith("."))
