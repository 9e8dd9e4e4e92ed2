"""An adapter as named tensors and back, every bit of it: how checkpoints keep what was trained.

A name is a layer's path and what LoRA files call the tensor. What no tensor says - the kernel of a layer of factors - goes into the header.
"""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from studio.errors import FormatError
from studio.lora.adapter import Adapter, Decomposed, Hadamard, Kronecker, Layer, LowRank

if TYPE_CHECKING:
    from torch import Tensor

KERNELS = "kernels"
_HADAMARD = ("w1_a", "w1_b", "w2_a", "w2_b")


def flattened(adapter: Adapter) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Tensors on the CPU, and words for the header. Raises TypeError for layers that are not trained."""
    import torch

    tensors, kernels = {}, {}
    for path, layer in adapter.layers.items():
        tensors |= {f"{path}.{name}": tensor for name, tensor in _parts(path, layer)}
        tensors[f"{path}.alpha"] = torch.tensor(layer.alpha, dtype=torch.float64)
        kernel = getattr(layer.layer if isinstance(layer, Decomposed) else layer, "kernel", ())
        if kernel:
            kernels[path] = list(kernel)
    for name, encoders in adapter.embeddings.items():
        tensors |= {f"bundle_emb.{name}.{encoder}": tensor for encoder, tensor in encoders.items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, ({KERNELS: json.dumps(kernels)} if kernels else {})


def rebuilt(tensors: "Mapping[str, Tensor]", words: Mapping[str, str]) -> Adapter:
    """The adapter that `flattened` took apart; words: the header, which names its family. Raises FormatError if tensors are missing."""
    kernels = json.loads(words.get(KERNELS, "{}"))
    groups: dict[str, dict[str, Tensor]] = {}
    embeddings: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        path, _, part = name.rpartition(".")
        if path.startswith("bundle_emb."):
            embeddings.setdefault(path.removeprefix("bundle_emb."), {})[part] = tensor
        else:
            groups.setdefault(path, {})[part] = tensor
    try:
        layers = {path: _layer(found, tuple(kernels.get(path, ()))) for path, found in groups.items()}
    except KeyError as error:
        raise FormatError(f"a layer of the checkpoint has no {error.args[0]!r}; use an earlier one") from None
    return Adapter(words["family"], layers, embeddings=embeddings)


def _parts(path: str, layer: Layer) -> "Iterator[tuple[str, Tensor]]":
    if isinstance(layer, Decomposed):
        if layer.axis != "output":
            raise TypeError(f"{path}: lengths of columns are not trained")
        yield from _parts(path, layer.layer)
        yield "dora_scale", layer.magnitude.reshape(-1, *(1 for _ in layer.shape[1:]))
    elif isinstance(layer, LowRank):
        yield from (("down", layer.down), ("up", layer.up))
    elif isinstance(layer, Hadamard) and layer.t1 is None:
        yield from ((f"hada_{name}", getattr(layer, name)) for name in _HADAMARD)
    elif isinstance(layer, Kronecker) and layer.t2 is None and layer.rows is None:
        for name, factors in (("lokr_w1", layer.w1), ("lokr_w2", layer.w2)):
            yield from ((f"{name}{end}", factor) for end, factor in zip(("_a", "_b") if len(factors) == 2 else ("",), factors, strict=True))
    else:
        raise TypeError(f"{path}: layers of type {type(layer).__name__} in this form are not trained")


def _layer(found: "Mapping[str, Tensor]", kernel: tuple[int, ...]) -> Layer:
    alpha = float(found["alpha"])
    layer: Any
    if "hada_w1_a" in found:
        layer = Hadamard(*(found[f"hada_{name}"] for name in _HADAMARD), alpha=alpha, kernel=kernel)
    elif {"lokr_w1", "lokr_w1_a"} & set(found):
        layer = Kronecker(_factors(found, "lokr_w1"), _factors(found, "lokr_w2"), alpha, kernel)
    else:
        layer = LowRank(found["down"], found["up"], alpha)
    return Decomposed(layer, found["dora_scale"].flatten()) if "dora_scale" in found else layer


def _factors(found: "Mapping[str, Tensor]", name: str) -> "tuple[Tensor, ...]":
    return (found[name],) if name in found else (found[f"{name}_a"], found[f"{name}_b"])
