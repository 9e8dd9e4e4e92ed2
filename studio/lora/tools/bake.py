"""A base with adapters in it, as a model of its own: W + sum of weight * delta in fp32, rounded once, tensor by tensor."""

import json
import os
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from studio import metadata as headers
from studio.container import TORCH
from studio.errors import FormatError, InputError, RunError
from studio.events import Loading, Warned
from studio.families import get, sources, stored
from studio.families.base import Base
from studio.lora.adapter import Adapter, Layer, delta
from studio.lora.products import low_rank
from studio.lora.tools import Progress, origin
from studio.lora.tools.streaming import BYTES, Entry, Writer, ordered

if TYPE_CHECKING:
    from torch import Tensor

Dtype = Literal["stored", "fp16", "bf16", "fp32"]
Row = tuple[str, Adapter, float]  # what it is called, the adapter, its weight
_DTYPES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
_WEIGHTS = {".safetensors", ".bin", ".msgpack", ".onnx", ".onnx_data", ".pb", ".pt", ".ckpt", ".gguf"}
Told = Generator[Loading | Warned, None, dict[str, Any]]


@dataclass(frozen=True)
class _Changes:
    """What is added to which tensor, and what found no place."""

    added: Mapping[str, Sequence[tuple[Layer, float]]]
    layers: int
    left: Sequence[str]


@dataclass(frozen=True)
class _File:
    """A file to write: entries in order, with the slot behind each; None for an empty marker."""

    path: Path
    rows: Sequence[tuple[Entry, stored.Slot | None]]
    metadata: Mapping[str, str]

    @property
    def n_bytes(self) -> int:
        return sum(entry.n_bytes for entry, _ in self.rows)


def bake(base: Base, rows: Sequence[Row], output: Path, dtype: Dtype = "stored") -> Told:
    """Write `output`: one .safetensors file, or a diffusers folder where it has no such ending; the report of it.

    A file holds what its family keeps in one: all parts of SDXL, the transformer of FLUX.1. The VAE stays in its own number format; 8-bit
    numbers, which would swallow the change, become fp16. Nothing is left behind if this ends early.
    """
    yield Loading(phase="reading the base")
    with stored.opened(base) as weights:
        if output.suffix == ".safetensors":
            report = yield from _bake_file(base, rows, output, dtype, weights)
        else:
            report = yield from _bake_folder(base, rows, output, dtype, weights)
    return report


def _bake_file(base: Base, rows: Sequence[Row], output: Path, dtype: Dtype, weights: stored.Weights) -> Told:
    family = get(base.family)
    own = {one.slot.name: one for one in weights.stored if one.file == base.path}
    slots = stored.slots(family.sections(own.keys()), weights.shapes)
    known = {slot.name for slot in slots}
    rest = [one.slot for name, one in own.items() if name not in known and not one.slot.parts]  # markers, position ids, what else came along
    changes = _changes(base, rows, {part for slot in slots for part in slot.parts}, weights)
    metadata = origin.of_checkpoint(base, output.stem, [f"{origin.title(adapter.metadata, called)} {weight:g}" for called, adapter, weight in rows])
    architecture = base.name if base.builtin else base.habits.get("architecture")
    if architecture:
        metadata[sources.ARCHITECTURE] = str(architecture)
    entries: list[tuple[Entry, stored.Slot | None]] = [(Entry(slot.name, slot.shape, _dtype(slot, dtype, weights)), slot) for slot in slots]
    entries += [(Entry(slot.name, slot.shape, own[slot.name].dtype), slot) for slot in rest]
    entries += [(Entry(name, (0,), "F32"), None) for name in family.markers(base)]
    file = _sorted(output, entries, metadata)
    _room(output, file.n_bytes)
    yield from _warnings(changes, rows)
    progress = Progress("writing the checkpoint", len(file.rows))
    digest = yield from _write(file, changes, weights, own, progress)
    headers.read_header(output)
    return _report(output, dtype, [file], changes, rows) | {"modelspec.hash_sha256": digest}


def _bake_folder(base: Base, rows: Sequence[Row], output: Path, dtype: Dtype, weights: stored.Weights) -> Told:
    if not base.path.is_dir():
        raise InputError(f"output {output.name}: {base.name} is one file, so the output is one too; end its name in .safetensors")
    if base.vae is not None:
        raise InputError("a folder keeps its own VAE; leave --vae out, or write a .safetensors file")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"output {output} exists; name a new folder")
    changes = _changes(base, rows, set(weights.shapes), weights)
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    files = [_part_file(path, part / path.relative_to(base.path), dtype, weights) for path in dict.fromkeys(one.file for one in weights.stored)]
    _room(output, sum(file.n_bytes for file in files))
    yield from _warnings(changes, rows)
    progress = Progress("writing the model", sum(len(file.rows) for file in files))
    own = {(one.file, one.slot.name): one for one in weights.stored}
    try:
        _copy_rest(base, part, output.name)
        for path, file in zip(dict.fromkeys(one.file for one in weights.stored), files, strict=True):
            yield from _write(file, changes, weights, {slot.name: own[path, slot.name] for _, slot in file.rows if slot}, progress)
        if output.exists():
            output.rmdir()
        part.replace(output)
    except OSError as error:
        raise FormatError(f"{output}: cannot be written ({error.strerror or error}); choose another place or free some space") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return _report(output, dtype, files, changes, rows)


def _part_file(source: Path, target: Path, dtype: Dtype, weights: stored.Weights) -> _File:
    entries: list[tuple[Entry, stored.Slot | None]] = []
    for one in weights.stored:
        if one.file == source:
            number = _dtype(one.slot, dtype, weights) if one.slot.parts else one.dtype
            entries.append((Entry(one.slot.name, one.slot.shape, number), one.slot))
    return _sorted(target.with_name(_plain(target.name)), entries, headers.read_header(source).metadata)


def _copy_rest(base: Base, part: Path, name: str) -> None:
    """Everything of the folder that is not weights: configurations, tokenizers, licence."""
    index = json.loads((base.path / "model_index.json").read_text(encoding="utf-8"))
    folders = [base.path / key for key in index if not key.startswith("_") and (base.path / key).is_dir()]
    for path in [*(path for path in base.path.iterdir() if path.is_file()), *(path for folder in folders for path in folder.rglob("*") if path.is_file())]:
        inner = path.relative_to(base.path)
        if path.suffix in _WEIGHTS or any(piece.startswith(".") for piece in inner.parts) or path.name.endswith((".bin.index.json", ".index.fp16.json")):
            continue
        target = part / inner
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for folder in folders:
        for path in folder.glob("*.safetensors.index.fp16.json"):
            if not (part / folder.name / _plain(path.name)).exists():
                (part / folder.name / _plain(path.name)).write_text(path.read_text(encoding="utf-8").replace(".fp16", ""), encoding="utf-8")
    habits = part / sources.HABITS_FILE
    told = json.loads(habits.read_text(encoding="utf-8")) if habits.is_file() else {}
    habits.write_text(json.dumps({**told, "title": name}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _plain(name: str) -> str:
    """The name of a weights file that is no longer the fp16 copy of another."""
    return name.replace(".fp16", "")


def _sorted(path: Path, rows: Sequence[tuple[Entry, stored.Slot | None]], metadata: Mapping[str, str]) -> _File:
    by_name = {entry.name: slot for entry, slot in rows}
    return _File(path, [(entry, by_name[entry.name]) for entry in ordered([entry for entry, _ in rows])], metadata)


def _changes(base: Base, rows: Sequence[Row], there: set[str], weights: stored.Weights) -> _Changes:
    """The adapters' layers by tensor name. Raises FormatError if one is of another family, or has no layer that fits."""
    facts = get(base.family).facts
    added: dict[str, list[tuple[Layer, float]]] = {}
    left: list[str] = []
    fitting = 0
    for called, adapter, weight in rows:
        if adapter.family != base.family:
            raise FormatError(f"{called} is a LoRA for {adapter.family}, the base {base.name} is {facts.title}; choose a base of its family")
        wrong = []
        for path, layer in adapter.layers.items():
            name = path if path.endswith(".bias") else f"{path}.weight"
            if name not in there or weights.shapes[name] != tuple(layer.shape):
                wrong.append(path)
            elif weight:
                added.setdefault(name, []).append((layer, weight))
        if len(wrong) == len(adapter.layers):
            raise FormatError(f"{called}: none of its {len(wrong)} layers fits {base.name}, first {next(iter(wrong), 'it has none')}; choose its base")
        fitting += len(adapter.layers) - len(wrong)
        if wrong:
            left.append(f"{called}: {len(wrong)} of {len(adapter.layers)} layers have no place in the output and are left out, first {wrong[0]}")
    return _Changes(added, fitting, left)


def _warnings(changes: _Changes, rows: Sequence[Row]) -> Iterator[Warned]:
    for message in changes.left:
        yield Warned(message=message)
    for called, adapter, _ in rows:
        if adapter.embeddings:
            yield Warned(
                message=f"{called} brings the new words {', '.join(adapter.embeddings)}, which no checkpoint holds: export them apart, with side files"
            )


def _dtype(slot: stored.Slot, wanted: Dtype, weights: stored.Weights) -> str:
    """The number format of a tensor in the output."""
    kept = {("F16" if BYTES[weights.dtypes[part]] == 1 else weights.dtypes[part]) for part in slot.parts}
    of_vae = slot.section is not None and slot.section.part == "vae"
    if wanted != "stored" and not of_vae:
        return _DTYPES[wanted]
    return kept.pop() if len(kept) == 1 else "F32"


def _write(file: _File, changes: _Changes, weights: stored.Weights, own: Mapping[str, stored.Stored], progress: Progress) -> Generator[Loading, None, str]:
    """Write one file; the hash of its tensors."""
    import torch

    with torch.no_grad(), Writer(file.path, [entry for entry, _ in file.rows], file.metadata) as writer:
        for entry, slot in file.rows:
            if slot is None:
                tensor = torch.zeros(entry.shape)
            elif _untouched(entry, slot, own.get(slot.name), changes):
                tensor = weights.raw(own[slot.name])
            else:
                tensor = slot.join({part: _sum(weights.read(part), changes.added.get(part, ())) for part in slot.parts}).to(getattr(torch, TORCH[entry.dtype]))
                if not bool(torch.isfinite(tensor).all()):
                    raise FormatError(f"{entry.name}: these weights make numbers beyond {entry.dtype}; lower the weights, or write bf16 or fp32")
            writer.write(tensor)
            yield from progress.step()
    return writer.sha256


def _untouched(entry: Entry, slot: stored.Slot, own: stored.Stored | None, changes: _Changes) -> bool:
    """Whether the stored tensor goes to the output as it is."""
    if own is None or any(part in changes.added for part in slot.parts):
        return False
    return not slot.parts or (own.dtype, own.slot.shape) == (entry.dtype, entry.shape)


def _sum(own: "Tensor", layers: Sequence[tuple[Layer, float]]) -> "Tensor":
    """own + sum of weight * delta, in fp32, by the same operations as a stack: all short layers in one product, then the others."""
    import torch

    total = own.to(torch.float32, copy=True)
    factors = [low_rank(layer) for layer, _ in layers]
    short = [(up, down, weight) for found, (_, weight) in zip(factors, layers, strict=True) if found for up, down in (found,)]
    if short:
        weights = torch.tensor([weight for _, down, weight in short for _ in range(down.shape[0])])
        up = torch.cat([up for up, _, _ in short], dim=1).mul_(weights)
        total.view(total.shape[0], -1).addmm_(up, torch.cat([down for _, down, _ in short]))
    for found, (layer, weight) in zip(factors, layers, strict=True):
        if found is None:
            total.add_(delta(layer, own.float()), alpha=weight)
    return total


def _room(output: Path, n_bytes: int) -> None:
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise RunError(f"{output.name} needs {n_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free at its place; free some space or name another place")


def _report(output: Path, dtype: Dtype, files: Sequence[_File], changes: _Changes, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "file": output.name,
        "bytes": sum(file.n_bytes for file in files),
        "dtype": dtype,
        "tensors": sum(len(file.rows) for file in files),
        "changed": len(changes.added),
        "layers": changes.layers,
        "left_out": list(changes.left),
        "loras": [{"name": called, "weight": weight} for called, _, weight in rows],
    }
