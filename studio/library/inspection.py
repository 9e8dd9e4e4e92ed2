"""What a file is, for people: identity, header, hashes, who loads it, whether it fits a base. From the file alone, without torch."""

import base64
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from studio.errors import BaseError, InputError
from studio.families import FAMILIES, get
from studio.families.base import Base
from studio.library import adapters, civitai

SHOWN = 20  # unknown tensors that are named
THUMBNAIL_SIDE = 256  # pixels, as the model metadata standard advises


def inspected(path: Path, base: Base | None, rare_hashes: bool) -> dict[str, Any]:
    """JSON values about any .safetensors file; a LoRA's among them are what the library keeps of it. Raises FormatError for other files."""
    from studio import metadata
    from studio.lora import formats
    from studio.lora.formats.foreign import TITLES

    header = metadata.read_header(path)
    found = formats.identify(header.shapes, header.metadata)
    told = {
        "file": path.name,
        "kind": found.kind,
        "family": found.family,
        "family_title": TITLES.get(found.family, found.family),
        "readable": found.readable,
        "reason": found.reasons[0] if found.reasons else "",
        "warnings": list(found.warnings),
        "format": found.format,
        "algorithm": found.algorithm,
        "parts": dict(found.parts),
        "ranks": list(found.ranks),
        "confidence": found.confidence,
        "unknown": list(found.unknown[:SHOWN]),
        "embeddings": list(found.embeddings),
    }
    known: dict[str, Any] = adapters.describe(path) if found.readable else {"bytes": path.stat().st_size}
    known |= {} if found.readable else {"sha256": adapters.sha256(path)}
    told |= {key: value for key, value in known.items() if key not in ("kind", "family", "facts")}
    told |= {"warnings": known["facts"]["warnings"]} if found.readable else {}
    told |= {"hashes": metadata.file_hashes(path, rare_hashes), "dtypes": sorted(set(header.dtypes.values())), "metadata": dict(header.metadata)}
    told |= {"civitai": civitai.version_of(path)}
    others = seen_by_others(path) if found.readable else {"clients": [], "notes": []}
    return told | others | ({"fit": fit(path, base)} if base is not None else {})


def seen_by_others(path: Path) -> dict[str, Any]:
    """The verdicts of other programs: {"clients", "notes"}."""
    from studio.lora import proof

    return proof.examined(path)


def fit(path: Path, base: Base) -> dict[str, Any]:
    """Whether the LoRA in a file fits a base: {"base", "fits", "reason", "matched", "missing", "mismatched"}, and in words why not."""
    from studio import metadata
    from studio.lora import formats
    from studio.lora.clients import content

    header = metadata.read_header(path)
    found = formats.identify(header.shapes, header.metadata)
    answer: dict[str, Any] = {"base": base.name, "fits": False, "reason": "", "matched": 0, "missing": 0, "mismatched": 0}
    if not found.readable:
        return {**answer, "reason": f"it {found.reasons[0]}"}
    if found.family and found.family != base.family:
        has, needs = (FAMILIES[name].facts.title if name in FAMILIES else "another model" for name in (found.family, base.family))
        return {**answer, "reason": f"it is a LoRA for {has}, {base.name} is {needs}"}
    weights = _weights(base)
    if weights is None:
        return {
            **answer,
            "fits": True,
            "reason": f"it is a LoRA for {get(base.family).facts.title}, as {base.name} is; sizes are compared when it is drawn with",
        }
    counts = {"matched": 0, "missing": 0, "mismatched": 0}
    wrong = ""
    for module in content(header.shapes, {}).modules:
        outcome = _outcome(module.paths, module.shapes, weights)
        counts[outcome] += 1
        if outcome != "matched" and not wrong:
            wrong = f"{module.name[:100]} has no place in it" if outcome == "missing" else f"{module.name[:100]} is of another size"
    total = sum(counts.values())
    share = f"{total - counts['matched']} of {total} layers do not fit" if counts["matched"] else f"none of its {total} layers fits"
    reason = f"{share}, first: {wrong}" if wrong else f"all {total} layers fit"
    return {**answer, **counts, "fits": not wrong, "reason": reason}


def rewritten(path: Path, changes: Mapping[str, str | None], picture: Path | None) -> dict[str, str]:
    """Give the file another header; the tensors keep every byte. The new metadata."""
    from studio import metadata
    from studio.lora.header import THUMBNAIL, edited

    header = metadata.read_header(path)
    if not changes and picture is None:
        raise InputError("name something to change, for example a title or a trigger")
    entries = dict(changes)
    if picture is not None:
        entries[THUMBNAIL] = thumbnail(picture)
    words = edited(header.metadata, entries) | metadata.hash_entries(metadata.tensor_hash(path))
    metadata.rewrite_metadata(path, words)
    return dict(sorted(words.items()))


def thumbnail(picture: Path) -> str:
    """A small JPEG of the picture's middle square, as a data URI."""
    from PIL import ImageOps

    from studio.data.decoding import decode

    out = BytesIO()
    ImageOps.fit(decode(picture), (THUMBNAIL_SIDE, THUMBNAIL_SIDE)).save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _weights(base: Base) -> dict[str, tuple[int, ...]] | None:
    """Shapes of a base's weights by canonical module path, from the headers of its files; None where the files do not tell."""
    from studio import metadata
    from studio.families.stored import weight_files

    if not base.path.is_dir():
        return None
    facts = get(base.family).facts
    found: dict[str, tuple[int, ...]] = {}
    for part in (facts.denoiser, *facts.text_encoders):
        try:
            files = weight_files(base.path, part)
        except BaseError:
            return None
        for file in files:
            for name, shape in metadata.read_header(file).shapes.items():
                inner = f"text_model.{name}" if part != facts.denoiser and name.startswith("encoder.layers.") else name
                found[f"{part}.{inner}"] = shape
    return found


def _outcome(paths: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, tuple[int, ...]]) -> str:
    bases = [weights.get(f"{path}.weight") for path in paths]
    known = [shape for shape in bases if shape]
    if not known or len(known) < len(bases):
        return "missing"
    down, up = shapes.get("down"), shapes.get("up")
    if down is None or up is None:
        return "matched"  # other kinds of layers are compared when they are drawn with
    same = down[1] == known[0][1] and up[0] == sum(shape[0] for shape in known)
    return "matched" if same else "mismatched"
