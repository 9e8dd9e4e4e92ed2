"""Adapter -> tensors under the names of a file format."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from studio.errors import FormatError
from studio.families import flux_names, sdxl_names
from studio.lora.adapter import Adapter, Difference, Layer, LowRank
from studio.lora.formats import flux

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def kohya_tensors(adapter: Adapter, dtype: "torch.dtype") -> "dict[str, Tensor]":
    """kohya names: LDM module names for SDXL, the makers' fused ones for FLUX.1, a real alpha for every module.

    All alphas of a file are the same number (`up` is rescaled): diffusers takes the most common one for all attention layers.
    """
    import torch

    modules = _sdxl_modules(adapter) if adapter.family == "sdxl" else _flux_modules(adapter)
    alpha = _common_alpha(adapter)
    tensors: dict[str, Tensor] = {}
    for name, layer in modules.items():
        if isinstance(layer, Difference):
            tensors[f"{name}.diff"] = _cast(name, layer.weight, dtype)
            continue
        up = layer.up if layer.alpha == alpha else layer.up.float() * (layer.alpha / alpha)
        tensors[f"{name}.lora_down.weight"] = _cast(name, layer.down, dtype)
        tensors[f"{name}.lora_up.weight"] = _cast(name, up, dtype)
        # float32 whatever the file's dtype: bf16 cannot hold every integer above 256.
        tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=torch.float32)
    return tensors


def peft_tensors(adapter: Adapter, dtype: "torch.dtype") -> "dict[str, Tensor]":
    """diffusers/PEFT names. No alpha: it is folded into lora_B, so that every reader sees scale 1; ranks are padded to one.

    InvokeAI refuses files with alpha keys, only diffusers reads alpha from the header, and older diffusers take one rank's alpha for all.
    """
    ranks = [layer.rank for layer in adapter.layers.values() if isinstance(layer, LowRank)]
    tensors: dict[str, Tensor] = {}
    for path, layer in adapter.layers.items():
        if isinstance(layer, Difference):
            raise FormatError(f"{path}: holds a full difference, which PEFT files cannot; export as kohya instead")
        down, up = _padded(layer, max(ranks))
        tensors[f"{path}.lora_A.weight"] = _cast(path, down, dtype)
        tensors[f"{path}.lora_B.weight"] = _cast(path, up * (layer.alpha / layer.rank), dtype)
    return tensors


def _padded(layer: LowRank, rank: int) -> "tuple[Tensor, Tensor]":
    """down and up in fp32 with rows and columns of zeros up to that rank."""
    import torch

    down, up = layer.down.float(), layer.up.float()
    if layer.rank == rank:
        return down, up
    more = rank - layer.rank
    return torch.cat([down, down.new_zeros(more, *down.shape[1:])]), torch.cat([up, up.new_zeros(up.shape[0], more, *up.shape[2:])], dim=1)


def _cast(name: str, tensor: "Tensor", dtype: "torch.dtype") -> "Tensor":
    import torch

    cast = tensor.detach().to("cpu", dtype, copy=True).contiguous()
    if not torch.isfinite(cast).all():
        raise FormatError(f"{name}: holds values that {str(dtype).removeprefix('torch.')} cannot; the run diverged, or export as fp32")
    return cast


def _common_alpha(adapter: Adapter) -> float:
    alphas = Counter(layer.alpha for layer in adapter.layers.values() if isinstance(layer, LowRank) and layer.alpha > 0)
    return alphas.most_common(1)[0][0] if alphas else 1.0


def _sdxl_modules(adapter: Adapter) -> dict[str, Layer]:
    prefixes = {part: prefix for prefix, part in sdxl_names.PREFIXES.items()}
    found = {}
    for path, layer in adapter.layers.items():
        part, _, inner = path.partition(".")
        if part == "unet" and sdxl_names.is_module(inner):
            found["lora_unet_" + sdxl_names.to_ldm(inner).replace(".", "_")] = layer
        elif part in prefixes and sdxl_names.TEXT.fullmatch(inner):
            found[f"{prefixes[part]}_{inner.replace('.', '_')}"] = layer
        else:
            raise FormatError(f"layer {path} has no name in kohya's SDXL format")
    return found


def _flux_modules(adapter: Adapter) -> dict[str, Layer]:
    prefixes = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te3"}
    found: dict[str, Layer] = {}
    for path, layer in adapter.layers.items():
        part, _, inner = path.partition(".")
        if part in prefixes and flux_names.TEXT.fullmatch(inner):
            found[f"{prefixes[part]}_{inner.replace('.', '_')}"] = layer
            continue
        if part != "transformer" or not flux_names.is_module(inner):
            raise FormatError(f"layer {path} has no name in kohya's FLUX.1 format")
        slot = flux_names.slot(inner)
        name = "lora_unet_" + slot.name.replace(".", "_")
        if name not in found:
            found[name] = _fused([adapter.layers.get(f"transformer.{other}") for other in slot.parts], swap=inner == flux_names.SWAPPED)
    return found


def _fused(layers: Sequence[Layer | None], swap: bool) -> Layer:
    """One layer for the modules that are one in the makers' names."""
    import torch

    first = next(layer for layer in layers if layer is not None)
    if len(layers) == 1:
        if not swap:
            return first
        if isinstance(first, Difference):
            return Difference(flux_names.swap_halves(first.weight))
        return LowRank(first.down, flux_names.swap_halves(first.up), first.alpha)
    sizes = _sizes(layers, width=first.shape[1])
    if any(isinstance(layer, Difference) for layer in layers):
        return Difference(torch.cat([layer.delta() if layer else torch.zeros(size, first.shape[1]) for layer, size in zip(layers, sizes, strict=True)]))
    return flux.fuse([layer if isinstance(layer, LowRank) else None for layer in layers], sizes)


def _sizes(layers: Sequence[Layer | None], width: int) -> list[int]:
    """Rows of each part; the untrained ones are as wide as the model, its MLP four times that."""
    expected = [width, width, width, 4 * width][: len(layers)]
    return [layer.shape[0] if layer else size for layer, size in zip(layers, expected, strict=True)]
