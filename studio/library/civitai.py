"""The number that Civitai knows a LoRA's version by, from the side files that download managers write.

Known are `NAME.civitai.info` (Civitai Helper: the site's own answer about a version), `NAME.metadata.json` (LoRA Manager: the same under
`civitai`) and `NAME.json` with `modelVersionId`. The library keeps the number in a file of its own beside the LoRA.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from studio.library.files import write_whole

SUFFIXES = (".civitai.info", ".metadata.json", ".json")
KEPT = "studio-civitai.json"
LARGEST = 8 * 1024**2


@dataclass(frozen=True)
class Card:
    """What a side file says. hashes: of the files that it is about, in lower case; none if it names none."""

    version: int
    model: int = 0
    words: tuple[str, ...] = ()
    hashes: frozenset[str] = frozenset()

    def about(self, sha256: str, autov3: str) -> bool:
        """Whether it is about this file: a hash agrees, or it names none."""
        return not self.hashes or bool(self.hashes & {sha256.lower(), autov3[:12].lower()})


def read(text: bytes) -> Card | None:
    """The card in a side file's bytes; None if it names no version."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    told = found["civitai"] if isinstance(found.get("civitai"), dict) else found
    version = _number(told.get("modelVersionId")) or (_number(told.get("id")) if told.get("modelId") else 0)
    words = told.get("trainedWords")
    listed = [word for word in words if isinstance(word, str)] if isinstance(words, list) else []
    return Card(version, _number(told.get("modelId")), tuple(listed), _hashes(told)) if version else None


def stem_of(name: str) -> str:
    """The stem of the LoRA that a side file of this name is about; empty for any other file."""
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), "")


def beside(lora: Path) -> Card | None:
    """What the side files of a LoRA file say."""
    for suffix in SUFFIXES:
        path = lora.with_name(f"{lora.stem}{suffix}")
        if path.is_file() and path.stat().st_size <= LARGEST and (card := read(path.read_bytes())):
            return card
    return None


def keep(card: Card, folder: Path) -> None:
    """Remember it for the LoRA in this folder of the library."""
    told = {name: value for name, value in asdict(card).items() if name in ("version", "model")}
    write_whole(folder / KEPT, json.dumps(told).encode())


def version_of(lora: Path) -> int:
    """The version's number of a LoRA of the library; 0 if it is not known."""
    path = lora.with_name(KEPT)
    return _number(json.loads(path.read_bytes()).get("version")) if path.is_file() else 0


def _hashes(told: Mapping[str, Any]) -> frozenset[str]:
    files = told.get("files")
    tables = [file.get("hashes") for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    return frozenset(str(table[kind]).lower() for table in tables if isinstance(table, dict) for kind in ("SHA256", "AutoV3") if table.get(kind))


def _number(value: Any) -> int:
    """A positive whole number, whether it is written as one or as text; else 0."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else 0
