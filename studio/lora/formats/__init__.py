"""LoRA files of every kind <-> Adapter. detect() needs names and shapes only; read() never drops a key in silence."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from studio import metadata as headers
from studio.errors import FormatError
from studio.families.base import Components
from studio.lora.adapter import Adapter, Decomposed, Difference, Layer, LowRank
from studio.lora.formats import embeddings
from studio.lora.formats.detect import Detection, detect
from studio.lora.formats.identity import Identity, identify
from studio.lora.formats.layers import Known

__all__ = ["Detection", "Identity", "LoadReport", "detect", "difference", "identify", "read", "report", "require_fit", "verify", "write"]

TOLERANCE = {"F32": 1e-6, "F16": 2e-3, "BF16": 1e-2}  # relative, of the Frobenius norm of a delta


@dataclass(frozen=True)
class LoadReport:
    """How an adapter fits a base: canonical module paths, and for the mismatched the two shapes in words."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]  # layers of the adapter that the base has no module for
    mismatched: tuple[str, ...]
    untouched: int  # modules of the base without a layer
    encoders: tuple[str, ...] = ()  # text encoders that have a matching layer
    unknown: tuple[str, ...] = ()  # keys of the file that meant nothing

    @property
    def summary(self) -> str:
        """One line for a person."""
        total = len(self.matched) + len(self.missing) + len(self.mismatched)
        words = [f"{len(self.matched)} of {total} layers fit"]
        words += [f"{len(self.missing)} have no module"] if self.missing else []
        words += [f"{len(self.mismatched)} are of another size"] if self.mismatched else []
        words += [f"{len(self.unknown)} keys are unknown"] if self.unknown else []
        words += [f"with {' and '.join(self.encoders)}"] if self.encoders else []
        return ", ".join(words)

    def require(self, file: str, base: str) -> None:
        """Raise FormatError naming the first layer that does not fit."""
        wrong = [*self.missing, *self.mismatched]
        if wrong:
            total = len(wrong) + len(self.matched)
            raise FormatError(f"{file}: {len(wrong)} of {total} layers do not fit {base}, first {wrong[0]}; is the LoRA for another base?")


def read(path: Path, c: Components | None = None, partial: bool = False, stored: bool = False) -> Adapter:
    """The adapter in a file of any supported format, in fp32. Raises FormatError in one line.

    c: a loaded base; then an adapter of another family, or with a layer that does not fit, is an error too.
    partial: keys that mean nothing are listed in the adapter's `unknown` instead of refused.
    stored: low-rank layers keep the number format of the file, which whoever puts them on a base widens there.
    """
    from studio.lora.formats.loading import load
    from studio.lora.formats.reader import read_tensors

    header = headers.read_header(path)
    found = identify(header.shapes, header.metadata)
    if not found.readable:
        raise FormatError(f"{path.name}: {found.reasons[0]}")
    try:
        tensors = load(path, header)
    except OSError as error:
        raise FormatError(f"{path.name}: cannot be read ({error}); copy or download it again") from None
    adapter = read_tensors(path.name, tensors, header.metadata, partial, Known(found, stored))
    if c is not None:
        require_fit(path.name, adapter, c)
    return adapter


def require_fit(file: str, adapter: Adapter, c: Components) -> None:
    """Raise FormatError unless every layer has a module of its shape in the base. Text encoders that are not loaded are not looked at."""
    from studio.lora.attach import parameter_map

    if adapter.family != c.facts.name:
        raise FormatError(f"{file}: is a LoRA for {adapter.family}, the base {c.base.name} is {c.facts.title}; choose a base of its family")
    shapes = {path: tuple(parameter.shape) for path, parameter in parameter_map(c).items()}
    loaded = {path: layer for path, layer in adapter.layers.items() if path.partition(".")[0] in c.parts}
    report(Adapter(adapter.family, loaded), shapes).require(file, c.base.name)


def write(
    adapter: Adapter,
    path: Path,
    *,
    format: Literal["kohya", "peft"] = "kohya",
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the file whole or not at all, with the metadata given and the hashes of its tensors."""
    import hashlib

    import torch
    from safetensors.torch import save

    from studio.lora.formats import writer

    if not adapter.layers and not adapter.embeddings:
        raise FormatError(f"{path.name}: the LoRA has no layers; nothing was written")
    number = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    tensors = {"kohya": writer.kohya_tensors, "peft": writer.peft_tensors}[format](adapter, number)
    payload = save(tensors)
    header = headers.parse_header(path.name, payload)
    section = memoryview(payload)[header.start :]
    digest = hashlib.sha256(section).hexdigest()
    entries = {**({"format": "pt"} if format == "peft" else {}), **(metadata or {}), **writer.extra_metadata(adapter), **headers.hash_entries(digest)}
    headers.write_atomic(path, [headers.compose_header(header, entries), section])


def verify(path: Path, adapter: Adapter) -> dict[str, Any]:
    """Read the file back and compare every delta with the adapter's. Raises FormatError if one is off, missing or added."""
    header = headers.read_header(path)
    again = read(path)
    dtype = next((name for name in ("BF16", "F16", "F32") if any(own == name for key, own in header.dtypes.items() if not key.endswith(".alpha"))), "F32")
    worst, where = 0.0, ""
    for name in sorted({*adapter.layers, *again.layers}):
        distance = difference(adapter.layers.get(name), again.layers.get(name))
        if distance >= worst:
            worst, where = distance, name
    worst, where = max((worst, where), embeddings.difference(adapter.embeddings, again.embeddings))
    if worst > TOLERANCE[dtype] or again.family != adapter.family:
        raise FormatError(f"{path.name}: {where} differs by {worst:.1e} from what was to be written (at most {TOLERANCE[dtype]:.0e}); the file is not right")
    digest = headers.tensor_hash(path)
    if header.metadata.get("sshs_model_hash", digest) != digest:
        raise FormatError(f"{path.name}: its sshs_model_hash is not that of its tensors; write it anew")
    ranks = sorted({layer.rank for layer in again.layers.values()})
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "format": detect(header.shapes).format,
        "family": again.family,
        "dtype": dtype,
        "tensors": len(header.shapes),
        "modules": len(again.layers),
        "ranks": ranks,
        "worst_difference": worst,
        "worst_module": where,
        "sshs_model_hash": digest,
    }


def report(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> LoadReport:
    """How the adapter fits modules of these weight shapes, by canonical path."""
    matched, missing, mismatched = [], [], []
    for path, layer in adapter.layers.items():
        shape = shapes.get(path)
        if shape is None:
            missing.append(path)
        elif tuple(shape) != tuple(layer.shape):
            mismatched.append(f"{path} (the LoRA is for {list(layer.shape)}, the base has {list(shape)})")
        else:
            matched.append(path)
    encoders = tuple(sorted({part for part in (path.partition(".")[0] for path in matched) if part.startswith("text_encoder")}))
    untouched = len(shapes) - len(matched) - len(mismatched)
    return LoadReport(tuple(matched), tuple(missing), tuple(mismatched), untouched, encoders, adapter.unknown)


def difference(one: Layer | None, other: Layer | None) -> float:
    """Relative Frobenius distance of two deltas; an absent layer has delta 0. Low-rank layers are compared without forming it."""
    if one is None or other is None:
        present = one or other
        return 0.0 if present is None or _is_zero(present) else 1.0
    if one.shape != other.shape:
        return 1.0
    if isinstance(one, Decomposed) or isinstance(other, Decomposed):
        return _decomposed_difference(one, other)
    if isinstance(one, LowRank) and isinstance(other, LowRank):
        norms = _inner(one, one), _inner(other, other)
        # Rounding in fp64 leaves about 1e-8 here, far below what is asked of any file.
        distance = max(0.0, norms[0] + norms[1] - 2 * _inner(one, other))
    else:
        first, second = one.delta().double(), other.delta().double()
        norms = float(first.square().sum()), float(second.square().sum())
        distance = float((first - second).square().sum())
    return math.sqrt(distance / max(norms)) if max(norms) else 0.0


def _decomposed_difference(one: Layer, other: Layer) -> float:
    """The larger of the distances of inner layers and of magnitudes; without a base there are no deltas to compare."""
    if not isinstance(one, Decomposed) or not isinstance(other, Decomposed) or one.axis != other.axis:
        return 1.0
    first, second = one.magnitude.double(), other.magnitude.double()
    norm = max(float(first.norm()), float(second.norm()))
    return max(difference(one.layer, other.layer), float((first - second).norm()) / norm if norm else 0.0)


def _is_zero(layer: Layer) -> bool:
    if isinstance(layer, Decomposed):
        return False
    if isinstance(layer, LowRank):
        return _inner(layer, layer) == 0
    return not bool((layer.weight if isinstance(layer, Difference) else layer.delta()).any())


def _inner(one: LowRank, other: LowRank) -> float:
    """Inner product of two deltas from those of their ups and of their downs, r x r each."""
    ups = one.up.double().flatten(1).T @ other.up.double().flatten(1)
    downs = one.down.double().flatten(1) @ other.down.double().flatten(1).T
    return float((ups * downs).sum()) * (one.alpha / one.rank) * (other.alpha / other.rank)
