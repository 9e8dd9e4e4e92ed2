"""LoRA files of the library: read by header alone, kept in adapters/<id>/<name>.safetensors."""

import hashlib
import re
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from studio.config import safe_stem
from studio.container import Header, nonfinite
from studio.errors import FormatError, Unavailable
from studio.killpoints import reached
from studio.library.database import Database
from studio.library.files import or_nothing, place
from studio.library.layout import Layout
from studio.library.models import AdapterRow

_RANK_KEY = re.compile(r".*(lora_down|lora_A)(\.\w+)?\.weight|.*\.hada_w1_b|.*\.lokr_w2_b")


def describe(path: Path) -> dict[str, Any]:
    """Columns of an AdapterRow that the file itself tells. Raises FormatError if it is no LoRA."""
    from studio import metadata
    from studio.lora import formats

    header = metadata.read_header(path)
    found = formats.identify(header.shapes, header.metadata)
    if not found.readable:
        raise FormatError(f"{path.name}: {found.reasons[0]}; the library takes LoRA files for image models")
    words = header.metadata
    rank = _rank(header.shapes, words)
    return {
        "family": found.family or "",
        "kind": found.format,
        "base": words.get("ss_sd_model_name", ""),
        "trigger": (words.get("modelspec.trigger_phrase") or ", ".join(found.embeddings))[:200],
        "rank": rank,
        "alpha": _number(words.get("ss_network_alpha"), rank),
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "autov3": metadata.tensor_hash(path),
        "facts": {
            "tensors": len(header.shapes),
            "confidence": found.confidence,
            "title": words.get("modelspec.title", ""),
            "steps": words.get("ss_steps", ""),
            "algorithm": found.algorithm,
            "parts": dict(found.parts),
            "warnings": [*found.warnings, *_broken_numbers(path, header)],
        },
    }


def _broken_numbers(path: Path, header: Header) -> list[str]:
    """One line if tensors hold infinities or no numbers; such a file may be kept and looked at, not drawn with."""
    wrong = nonfinite(path, header)
    return [f"{len(wrong)} tensors hold values that are no numbers, first {wrong[0][:120]!r}; images cannot be drawn with it"] if wrong else []


def _rank(shapes: Mapping[str, tuple[int, ...]], words: Mapping[str, str]) -> int:
    """The rank it was trained at if it says so, else the commonest; fused layers hold several times the rank."""
    stated = words.get("ss_network_dim", "")
    if stated.isdigit():
        return int(stated)
    ranks = Counter(shape[0] for key, shape in shapes.items() if _RANK_KEY.fullmatch(key) and shape)
    return ranks.most_common(1)[0][0] if ranks else 0


def register(db: Database, layout: Layout, id: str, source: Path, told: Mapping[str, Any], preview: Path | None = None) -> AdapterRow:
    """The row of a LoRA whose file is `source`, stored under `id`; doing it twice changes nothing. `told` goes before the header's own words."""
    with db.read() as session:
        known = session.get(AdapterRow, id)
    if known is not None:
        place(source, file_of(layout, known))  # taken away after a commit whose answer was lost
        return known
    values = {**describe(source), "created": time.time(), "run": "", "preview": "", **{key: value for key, value in told.items() if value}}
    if report := values.pop("report", None):
        values["facts"] = {**values["facts"], "report": report}
    folder = layout.adapters / id
    stored = next(folder.glob("*.safetensors"), None) if folder.is_dir() else None  # left by a crash before the row was written
    try:
        with or_nothing(*([] if stored else [folder]), room=layout.adapters), db.write() as session:
            name = stored.stem if stored else free_name(session, str(told.get("name") or source.stem))
            place(source, folder / f"{name}.safetensors")
            reached("register")
            if preview is not None and preview.is_file():
                place(preview, folder / f"preview{preview.suffix}")
                values["preview"] = f"preview{preview.suffix}"
            row = AdapterRow(**{**values, "id": id, "name": name})
            session.add(row)
    except Unavailable as error:
        db.forget(AdapterRow, id, error)
        raise
    return row


def free_name(session: Session, wish: str) -> str:
    """`wish` as a file stem, with a number behind it if the library has one of that name (in any case, as file systems compare)."""
    stem = safe_stem(wish)
    name, n = stem, 1
    while session.scalar(select(AdapterRow.id).where(func.lower(AdapterRow.name) == name.lower())):
        n += 1
        name = f"{stem[:94]}-{n}"
    return name


def file_of(layout: Layout, row: AdapterRow) -> Path:
    return layout.adapters / row.id / f"{row.name}.safetensors"


def sha256(path: Path) -> str:
    """Hash of the whole file, as sharing sites know it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _number(text: str | None, otherwise: float) -> float:
    try:
        return float(text) if text else float(otherwise)
    except ValueError:
        return float(otherwise)
