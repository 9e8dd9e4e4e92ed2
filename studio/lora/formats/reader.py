"""Tensors of a file -> Adapter. One reader for all low-rank formats: they differ in names, and names.py knows those."""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from studio.errors import FormatError
from studio.families import flux_names, sdxl_names
from studio.lora.adapter import Adapter, Difference, Layer, LowRank
from studio.lora.formats import flux, names
from studio.lora.formats.detect import algorithm, detect

if TYPE_CHECKING:
    from torch import Tensor


def read_tensors(file: str, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> Adapter:
    """The adapter that the tensors describe, in fp32. Raises FormatError if any key or shape does not fit."""
    found = detect({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    family = found.family or _family_from(metadata)
    if found.format == "unknown" or not family or (found.family == "" and "mixes" in found.reason):
        raise FormatError(f"{file}: {found.reason}")
    groups, unknown = names.grouped(tensors)
    if unknown:
        other = algorithm(dict.fromkeys(unknown))
        kind = f"; it holds {other} layers, which the studio cannot read" if other else f"; is this a LoRA for another base than {family}?"
        raise FormatError(f"{file}: {len(unknown)} of {len(tensors)} keys are unknown, first {unknown[0]!r}{kind}")
    stated = _stated_alpha(file, {} if any(key.endswith(".alpha") for key in tensors) else metadata)
    layers: dict[str, Layer] = {}
    for module, keys in groups.items():
        target = names.target(module)
        assert target is not None
        layer = _layer(file, module, {kind: tensors[key] for kind, key in keys.items()}, stated)
        for path, part in _parts(file, target, layer):
            if path in layers:
                raise FormatError(f"{file}: layer {path} occurs twice, the second time as {module!r}")
            layers[path] = part
    return Adapter(family, layers, dict(metadata))


def _family_from(metadata: Mapping[str, str]) -> str:
    """For files of CLIP-L layers alone: the tensors do not tell, the metadata may."""
    text = " ".join(metadata.get(key, "") for key in ("ss_base_model_version", "modelspec.architecture")).lower()
    return "flux" if "flux" in text else "sdxl" if "sdxl" in text or "xl-v1" in text else ""


def _layer(file: str, module: str, tensors: "dict[str, Tensor]", stated: Callable[[str, int], float]) -> Layer:
    import torch

    if any(not torch.isfinite(tensor.float()).all() for tensor in tensors.values()):
        raise FormatError(f"{file}: layer {module!r} holds values that are no numbers; it was saved from a run that diverged")
    alpha = tensors["alpha"].float().reshape(-1) if "alpha" in tensors else None
    if alpha is not None and alpha.numel() != 1:
        raise FormatError(f"{file}: the alpha of {module!r} is no single number")
    if "diff" in tensors:
        return Difference(tensors["diff"].float())
    down, up = tensors.get("down"), tensors.get("up")
    if down is None or up is None:
        raise FormatError(f"{file}: layer {module!r} lacks its {'down' if down is None else 'up'} half; the file is incomplete")
    down, up = down.float(), up.float()
    if "mid" in tensors:
        down = torch.einsum("ijkl,jn->inkl", tensors["mid"].float(), down.flatten(1))
    if down.dim() not in (2, 4) or up.dim() not in (2, 4) or up.shape[1] != down.shape[0] or up.flatten(1).shape[1] != up.shape[1]:
        raise FormatError(f"{file}: layer {module!r} has shapes {list(down.shape)} and {list(up.shape)}, which do not multiply")
    rank = down.shape[0]
    return LowRank(down, up, float(alpha) if alpha is not None else stated(module, rank))


def _parts(file: str, target: names.Target, layer: Layer) -> list[tuple[str, Layer]]:
    """The layer under its canonical path, in pieces if the file had several modules in one."""
    first = target.paths[0]
    linear = target.family != "sdxl" or not sdxl_names.is_convolution(first)
    if linear and isinstance(layer, LowRank):
        if layer.down.flatten(1).shape[1] != layer.down.shape[1]:
            raise FormatError(f"{file}: {first} is a linear layer, the file has a convolution of shape {list(layer.down.shape)} for it")
        layer = LowRank(layer.down.flatten(1), layer.up.flatten(1), layer.alpha)
    elif isinstance(layer, LowRank) and layer.up.dim() == 2:
        layer = LowRank(layer.down, layer.up[:, :, None, None], layer.alpha)
    if target.fused and first.endswith(flux_names.SWAPPED):
        return [(first, _swapped(layer))]
    if len(target.paths) == 1:
        return [(first, layer)]
    sizes = flux_names.rows(target.fused, layer.shape[0], layer.shape[1])
    if min(sizes) <= 0:
        raise FormatError(f"{file}: {target.fused} has {layer.shape[0]} rows, too few for its parts")
    if isinstance(layer, Difference):
        pieces: list[Any] = [Difference(piece.contiguous()) for piece in layer.weight.split(sizes)]
    else:
        pieces = flux.split(layer, sizes)
    return [(path, piece) for path, piece in zip(target.paths, pieces, strict=True) if piece is not None]


def _swapped(layer: Layer) -> Layer:
    if isinstance(layer, Difference):
        return Difference(flux_names.swap_halves(layer.weight))
    return LowRank(layer.down, flux_names.swap_halves(layer.up), layer.alpha)


def _stated_alpha(file: str, metadata: Mapping[str, str]) -> Callable[[str, int], float]:
    """Alpha by module and rank where the tensors carry none: what PEFT's configuration in the header says, else the rank."""
    raw = metadata.get("lora_adapter_metadata")
    if raw is None:
        return lambda module, rank: float(rank)
    try:
        table = dict(json.loads(raw))
    except (ValueError, TypeError):
        raise FormatError(f"{file}: its lora_adapter_metadata is broken JSON; the strength it was saved for is unknown") from None

    def alpha(module: str, rank: int) -> float:
        part, _, path = module.partition(".")
        value = table.get(f"{part}.lora_alpha", rank)
        for pattern, own in (table.get(f"{part}.alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern.lstrip('^')})", path):
                value = own
                break
        # A reader of alpha / rank sees rank-stabilised scaling, alpha / sqrt(rank), as a larger alpha.
        return float(value) * (math.sqrt(rank) if table.get(f"{part}.use_rslora") else 1.0)

    return alpha
