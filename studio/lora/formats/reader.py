"""Tensors of a file -> Adapter. One reader for all formats: they differ in names, and names.py knows those."""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from studio.errors import FormatError
from studio.families import flux_names
from studio.lora.adapter import Adapter, Difference, Layer
from studio.lora.formats import flux, foreign, names
from studio.lora.formats.identity import identify
from studio.lora.formats.layers import Known, Part, assemble, finite, plain
from studio.lora.formats.loading import sound

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 2**27  # numbers in a layer that has to be formed to be read; FLUX.1's own has 19 million


def read_tensors(file: str, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str], partial: bool = False, known: Known | None = None) -> Adapter:
    """The adapter that the tensors describe, in fp32. Raises FormatError if any key or shape does not fit.

    partial: keys that mean nothing are listed in `unknown` instead. known: what was found out about the file before.
    """
    known = known or Known(identify({key: tuple(tensor.shape) for key, tensor in tensors.items()}, metadata))
    found = known.identity
    if not found.readable or not found.family:
        raise FormatError(f"{file}: {found.reasons[0]}")
    groups, unknown = names.grouped(tensors)
    if unknown and not partial:
        other = foreign.unreadable(foreign.joined(dict.fromkeys(unknown, ())))
        title = foreign.TITLES[found.family]
        kind = f"; it holds {other} layers, which the studio cannot read" if other else f"; is this a LoRA for another base than {title}?"
        raise FormatError(f"{file}: {len(unknown)} of {len(tensors)} keys are unknown, first {unknown[0]!r}{kind}")
    stated = _stated_alpha(file, {} if any(key.endswith(".alpha") for key in tensors) else metadata)
    parts = [
        Part(file, module, target, {kind: tensors[key] for kind, key in keys.items()}, known.stored)
        for module, keys in groups.items()
        if (target := names.target(module))
    ]
    if not sound(tensors.values()):
        finite(parts)
    layers: dict[str, Layer] = {}
    for part in parts:
        layer = plain(part)
        if layer is not None and part.target.paths[0] not in layers:
            layers[part.target.paths[0]] = layer
            continue
        try:
            layer, bias = assemble(part, stated)
        except (RuntimeError, IndexError) as error:
            raise part.wrong(f"has tensors that do not belong together ({str(error).splitlines()[0][:100]})") from error
        placed = [] if layer is None else _placed(part, layer)
        placed += [] if bias is None else [(f"{path}.bias", piece) for path, piece in _placed(part, Difference(bias))]
        for path, piece in placed:
            if path in layers:
                raise FormatError(f"{file}: layer {path} occurs twice, the second time as {part.module!r}")
            layers[path] = piece
    return Adapter(found.family, layers, dict(metadata), _embeddings(tensors), tuple(unknown))


def _embeddings(tensors: "Mapping[str, Tensor]") -> "dict[str, dict[str, Tensor]]":
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if names.split_key(key) is None and (place := names.embedding(key)):
            found.setdefault(place[0], {})[place[1]] = tensor
    return found


def _placed(part: Part, layer: Layer) -> list[tuple[str, Layer]]:
    """The layer under its canonical path, in pieces if the file had several modules in one."""
    target = part.target
    first = target.paths[0]
    if target.fused and first.endswith(flux_names.SWAPPED):
        if layer.shape[0] % 2 or math.prod(layer.shape) > LARGEST:
            raise part.wrong(f"has {layer.shape[0]} rows, which are not those of {first}")
        return [(first, flux.swapped(layer))]
    if len(target.paths) == 1:
        return [(first, layer)]
    try:
        sizes = _rows(len(target.paths), layer, part)
        return [(path, piece) for path, piece in zip(target.paths, flux.split(layer, sizes), strict=True) if piece is not None]
    except FormatError as error:
        raise FormatError(f"{part.file}: {part.module}: {error}") from None


def _rows(n: int, layer: Layer, part: Part) -> list[int]:
    """Rows of each part of a fused layer: thirds, or width, width, width and the MLP, which is four times as wide."""
    total = layer.shape[0]
    width = layer.shape[1] if len(layer.shape) > 1 else total // 7
    sizes = flux_names.rows(part.target.fused, total, width) if n == 4 else [total // n] * n
    if min(sizes) <= 0 or sum(sizes) != total:
        raise FormatError(f"has {total} rows, which {n} parts cannot share")
    return sizes


def _stated_alpha(file: str, metadata: Mapping[str, str]) -> Callable[[str, int], float]:
    """Alpha by module and rank where the tensors carry none: what PEFT's configuration in the header says, else the rank."""
    raw = metadata.get("lora_adapter_metadata")
    if raw is None:
        return lambda module, rank: float(rank)
    try:
        table = json.loads(raw)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise FormatError(f"{file}: its lora_adapter_metadata is broken JSON; the strength it was saved for is unknown")

    def alpha(module: str, rank: int) -> float:
        part, _, path = module.partition(".")
        value = table.get(f"{part}.lora_alpha", rank)
        patterns = table.get(f"{part}.alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise FormatError(f"{file}: the alpha_pattern in its lora_adapter_metadata is no table; the strength it was saved for is unknown")
        value = next((own for pattern, own in patterns.items() if _names(file, pattern, path)), value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
            raise FormatError(f"{file}: its lora_adapter_metadata has an alpha that is no number from 0 up")
        # A reader of alpha / rank sees rank-stabilised scaling, alpha / sqrt(rank), as a larger alpha.
        return float(value) * (math.sqrt(rank) if table.get(f"{part}.use_rslora") else 1.0)

    return alpha


def _names(file: str, pattern: str, path: str) -> bool:
    """Whether a key of PEFT's alpha_pattern means the module: its whole path, or without a leading `^` also the end of it.

    PEFT takes regular expressions; a file from elsewhere could hang the studio with one, so only plain names are taken.
    """
    name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if not re.fullmatch(r"[\w.-]+", name):
        raise FormatError(f"{file}: its alpha_pattern {pattern[:80]!r} is a regular expression, which the studio does not run; save the LoRA with alpha keys")
    return path == name or (not pattern.startswith("^") and path.endswith("." + name))
