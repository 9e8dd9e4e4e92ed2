"""Presets for drawing, one JSON file each in the data folder."""

import json
import re
from pathlib import Path

from pydantic import ValidationError

from studio.config import build
from studio.config.generating.presets import Preset
from studio.errors import InputError, NotFound
from studio.library.files import write_whole
from studio.library.layout import Layout


class Presets:
    """Use cases around them."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def list(self) -> list[Preset]:
        """By name; a file that is none is passed over."""
        found = []
        for path in sorted(self._layout.presets.glob("*.json")):
            try:
                found.append(Preset.model_validate_json(path.read_bytes()))
            except (ValidationError, OSError):
                continue  # written by hand or by a later version: it is not offered, and asking for it says why
        return sorted(found, key=lambda preset: preset.name.casefold())

    def show(self, name: str) -> Preset:
        """Raises NotFound naming those that exist, InputError for a file that is no preset."""
        path = self._path(name)
        if not path.is_file():
            known = ", ".join(preset.name for preset in self.list())
            raise NotFound(f"no preset {name!r}; " + (f"known are {known}" if known else "there is none yet"))
        try:
            return build(Preset, json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            raise InputError(f"preset {name!r}: {path.name} is not JSON; save it anew") from None

    def save(self, preset: Preset) -> Preset:
        """Keep it under its name; one of that name is replaced."""
        write_whole(self._path(preset.name), json.dumps(preset.model_dump(mode="json"), indent=1, ensure_ascii=False).encode())
        return preset

    def remove(self, name: str) -> Preset:
        """Forget it; what comes back can be saved again."""
        found = self.show(name)
        self._path(name).unlink()
        return found

    def _path(self, name: str) -> Path:
        return self._layout.presets / f"{re.sub(r'[^a-z0-9]+', '-', name.casefold()).strip('-') or 'preset'}-{_digest(name)}.json"


def _digest(name: str) -> str:
    import hashlib

    return hashlib.sha256(name.casefold().encode()).hexdigest()[:8]
