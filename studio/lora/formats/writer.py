"""Adapter -> tensors under the names of a file format. What a format cannot carry is an error that says the way out."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from studio.errors import FormatError
from studio.families import flux_names, sdxl_names
from studio.lora.adapter import Adapter, Decomposed, Difference, Hadamard, Kronecker, Layer, LowRank
from studio.lora.formats import flux, names

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Named = Iterator[tuple[str, Tensor]]

BIAS = ".bias"
TITLES = {Hadamard: "LoHa", Kronecker: "LoKr", Difference: "full difference", Decomposed: "DoRA", LowRank: "LoRA"}


def kohya_tensors(adapter: Adapter, dtype: "torch.dtype") -> "dict[str, Tensor]":
    """kohya's and LyCORIS' names: LDM module names for SDXL, the makers' fused ones for FLUX.1, a real alpha for every module.

    All alphas of low-rank layers are the same number (`up` is rescaled): diffusers takes the most common one for all attention layers.
    """
    modules = _sdxl_modules(adapter) if adapter.family == "sdxl" else _flux_modules(adapter)
    alpha = _common_alpha(adapter)
    tensors: dict[str, Tensor] = {}
    for name, layer in modules.items():
        if name.endswith(BIAS):
            tensors[name.removesuffix(BIAS) + ".diff_b"] = _cast(name, layer.delta(), dtype)  # type: ignore[call-arg]
            continue
        for suffix, tensor in _kohya_layer(layer, alpha):
            # alpha is float32 whatever the file's dtype: bf16 cannot hold every integer above 256.
            tensors[f"{name}.{suffix}"] = tensor if suffix == "alpha" else _cast(name, tensor, dtype)
    for name, encoders in adapter.embeddings.items():
        for encoder, tensor in encoders.items():
            suffix = "string_to_param.*" if encoder == "*" else encoder
            tensors[f"{names.EMBEDDING}{name}.{suffix}"] = _cast(name, tensor, dtype)
    return tensors


def peft_tensors(adapter: Adapter, dtype: "torch.dtype") -> "dict[str, Tensor]":
    """diffusers/PEFT names. No alpha: it is folded into lora_B, so that every reader sees scale 1; ranks are padded to one.

    InvokeAI refuses files with alpha keys, only diffusers reads alpha from the header, and older diffusers take one rank's alpha for all.
    """
    if adapter.embeddings:
        raise FormatError(f"the LoRA brings new words ({', '.join(adapter.embeddings)}), which PEFT files cannot carry; export as kohya, or the words apart")
    cores = {path: _peft_core(path, layer) for path, layer in adapter.layers.items() if not path.endswith(BIAS)}
    decomposed = sum(isinstance(layer, Decomposed) for layer in adapter.layers.values())
    if 0 < decomposed < len(cores):
        raise FormatError(f"{decomposed} of {len(cores)} layers are DoRA; PEFT files need all or none, so export as kohya, or bake the DoRA first")
    rank = max((layer.rank for layer in cores.values()), default=1)
    tensors: dict[str, Tensor] = {}
    for path, layer in adapter.layers.items():
        if path.endswith(BIAS):
            raise FormatError(f"{path}: holds a difference of a bias, which PEFT files cannot carry; export as kohya instead")
        down, up = _padded(cores[path], rank)
        tensors[f"{path}.lora_A.weight"] = _cast(path, down, dtype)
        tensors[f"{path}.lora_B.weight"] = _cast(path, up * (cores[path].alpha / cores[path].rank), dtype)
        if isinstance(layer, Decomposed):
            magnitude = layer.magnitude if len(layer.shape) == 2 else layer.magnitude.reshape(1, -1, 1, 1)
            tensors[f"{path}.lora_magnitude_vector"] = _cast(path, magnitude, dtype)
    return tensors


def extra_metadata(adapter: Adapter) -> dict[str, str]:
    """What a reader must know of the layers beside the tensors: that DoRA lengths are of rows, which reForge asks for."""
    axes = {layer.axis for layer in adapter.layers.values() if isinstance(layer, Decomposed)}
    return {"wd_on_output": "True"} if axes == {"output"} else {}


def _kohya_layer(layer: Layer, alpha: float) -> "Named":
    import torch

    if isinstance(layer, Decomposed):
        yield from _kohya_layer(layer.layer, alpha)
        ones = [1] * (len(layer.shape) - 1)
        yield "dora_scale", layer.magnitude.reshape((-1, *ones) if layer.axis == "output" else (1, -1, *ones[1:]))
    elif isinstance(layer, LowRank):
        yield "lora_down.weight", layer.down
        yield "lora_up.weight", layer.up if layer.alpha == alpha else layer.up.float() * (layer.alpha / alpha)
        yield "alpha", torch.tensor(alpha, dtype=torch.float32)
    elif isinstance(layer, Hadamard):
        yield from ((f"hada_{name}", getattr(layer, name)) for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
        yield from ((f"hada_{name}", core) for name, core in (("t1", layer.t1), ("t2", layer.t2)) if core is not None)
        yield "alpha", torch.tensor(layer.alpha, dtype=torch.float32)
    elif isinstance(layer, Kronecker):
        if layer.rows is not None:
            yield "diff", layer.delta()
            return
        for name, factors in (("w1", layer.w1), ("w2", layer.w2)):
            yield from ((f"lokr_{name}{end}", factor) for end, factor in zip(("_a", "_b") if len(factors) == 2 else ("",), factors, strict=True))
        if layer.t2 is not None:
            yield "lokr_t2", layer.t2
        yield "alpha", torch.tensor(layer.alpha, dtype=torch.float32)
    else:
        yield "diff", layer.weight


def _peft_core(path: str, layer: Layer) -> LowRank:
    inner = layer.layer if isinstance(layer, Decomposed) else layer
    if isinstance(layer, Decomposed) and layer.axis == "input":
        raise FormatError(f"{path}: is a DoRA by columns, PEFT's is by rows; export as kohya, or bake the DoRA first")
    if not isinstance(inner, LowRank):
        raise FormatError(
            f"{path}: holds a {TITLES[type(inner)]} layer, which PEFT files cannot carry; export as kohya instead, or resize to a plain LoRA first"
        )
    return inner


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
    cores = (layer.layer if isinstance(layer, Decomposed) else layer for layer in adapter.layers.values())
    alphas = Counter(layer.alpha for layer in cores if isinstance(layer, LowRank) and layer.alpha > 0)
    return alphas.most_common(1)[0][0] if alphas else 1.0


def _sdxl_modules(adapter: Adapter) -> dict[str, Layer]:
    prefixes = {part: prefix for prefix, part in sdxl_names.PREFIXES.items()}
    found = {}
    for path, layer in adapter.layers.items():
        part, _, inner = path.removesuffix(BIAS).partition(".")
        end = BIAS if path.endswith(BIAS) else ""
        if part == "unet" and names.is_unet(inner):
            found["lora_unet_" + sdxl_names.to_ldm(inner).replace(".", "_") + end] = layer
        elif part in prefixes and names.is_text(inner):
            found[f"{prefixes[part]}_{inner.replace('.', '_')}{end}"] = layer
        else:
            raise FormatError(f"layer {path} has no name in kohya's SDXL format")
    return found


def _flux_modules(adapter: Adapter) -> dict[str, Layer]:
    prefixes = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te3"}
    found: dict[str, Layer] = {}
    # A sum of Kronecker products is none, so q, k and v stay apart, under the names that ComfyUI has for that.
    apart = any(isinstance(layer, Kronecker) and layer.rows is None and _shares_a_slot(path) for path, layer in adapter.layers.items())
    for path, layer in adapter.layers.items():
        part, _, inner = path.removesuffix(BIAS).partition(".")
        end = BIAS if path.endswith(BIAS) else ""
        if apart and isinstance(layer, Kronecker) and part == "transformer" and flux_names.is_module(inner):
            found[f"lycoris_{inner.replace('.', '_')}"] = layer
            continue
        if part in prefixes and (flux_names.TEXT.fullmatch(inner) or (part == "text_encoder" and names.is_text(inner))):
            found[f"{prefixes[part]}_{inner.replace('.', '_')}{end}"] = layer
            continue
        if part != "transformer" or not flux_names.is_module(inner):
            raise FormatError(f"layer {path} has no name in kohya's FLUX.1 format")
        slot = flux_names.slot(inner)
        name = "lora_unet_" + slot.name.replace(".", "_") + end
        if name not in found:
            parts = [adapter.layers.get(f"transformer.{other}{end}") for other in slot.parts]
            found[name] = _fused(parts, swap=inner == flux_names.SWAPPED)
    return found


def _shares_a_slot(path: str) -> bool:
    part, _, inner = path.partition(".")
    return part == "transformer" and flux_names.is_module(inner) and len(flux_names.slot(inner).parts) > 1


def _fused(layers: Sequence[Layer | None], swap: bool) -> Layer:
    """One layer for the modules that are one in the makers' names."""
    import torch

    first = next(layer for layer in layers if layer is not None)
    if len(layers) == 1:
        return flux.swapped(first) if swap else first
    if len(first.shape) == 1:  # biases; the width is that of q, k and v, or a quarter of the MLP's
        width = next(layer.shape[0] if i < 3 else layer.shape[0] // 4 for i, layer in enumerate(layers) if layer is not None)
        sizes = _sizes(layers, width)
        return Difference(torch.cat([torch.zeros(size) if layer is None else layer.delta() for layer, size in zip(layers, sizes, strict=True)]))  # type: ignore[call-arg]
    return flux.fuse(layers, _sizes(layers, width=first.shape[1]))


def _sizes(layers: Sequence[Layer | None], width: int) -> list[int]:
    """Rows of each part; the untrained ones are as wide as the model, its MLP four times that."""
    expected = [width, width, width, 4 * width][: len(layers)]
    return [layer.shape[0] if layer else size for layer, size in zip(layers, expected, strict=True)]
