"""The adapter as a thing of its own: named layers, each able to give the difference it makes to its base weight.

Module paths are diffusers' names behind the pipeline part: `unet.down_blocks.1...to_q`, `transformer.transformer_blocks.0...`,
`text_encoder.text_model.encoder.layers.0...` (`text_model` always, whatever the installed transformers calls the module).
A layer stands for the weight of the module; at a path that ends in `.bias`, for its bias.

    Layer = LowRank     up @ down                   LoRA, LoCon, rsLoRA
          | Hadamard    (a1 @ b1) * (a2 @ b2)       LoHa
          | Kronecker   w1 (x) w2                   LoKr
          | Difference  the whole matrix            .diff
          | Decomposed  one of these, and lengths   DoRA; its delta depends on the base weight
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """down (r, in[, k, k]), up (out, r[, 1, 1]); delta = alpha / r * up @ down."""

    down: "Tensor"
    up: "Tensor"
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the base weight: (out, in) or (out, in, k, k)."""
        return (self.up.shape[0], *self.down.shape[1:])

    def delta(self) -> "Tensor":
        """The full difference in fp32, shaped like the base weight."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (product * (self.alpha / self.rank)).reshape(self.shape)


@dataclass(frozen=True)
class Hadamard:
    """LoHa: delta = alpha / r * (w1_a @ w1_b) * (w2_a @ w2_b), element by element.

    w1_a, w2_a (out, r); w1_b, w2_b (r, in[*k*k]). With cores t1, t2 (r, r, k, k): w1_a, w2_a (r, out) and w1_b, w2_b (r, in).
    kernel: (k, k) of a convolution, () of a linear layer. Source: KohakuBlueleaf/LyCORIS, functional/loha.py.
    """

    w1_a: "Tensor"
    w1_b: "Tensor"
    w2_a: "Tensor"
    w2_b: "Tensor"
    alpha: float
    kernel: tuple[int, ...] = ()
    t1: "Tensor | None" = None
    t2: "Tensor | None" = None

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        if self.t1 is not None:
            return (self.w1_a.shape[1], self.w1_b.shape[1], *self.t1.shape[2:])
        return (self.w1_a.shape[0], self.w1_b.shape[1] // math.prod(self.kernel), *self.kernel)

    def delta(self) -> "Tensor":
        one = _product(self.w1_a, self.w1_b, self.t1)
        return (one.mul_(_product(self.w2_a, self.w2_b, self.t2)) * (self.alpha / self.rank)).reshape(self.shape)


@dataclass(frozen=True)
class Kronecker:
    """LoKr: delta = scale * kron(w1, w2), of which `rows` may keep a range (a part of a fused layer).

    w1 (o1, i1) or the pair (o1, r), (r, i1). w2 (o2, i2[, k, k]), or the pair (o2, r), (r, i2[*k*k]), or with a core t2 (r, r, k, k)
    the pair (r, o2), (r, i2). scale: alpha / r, and 1 where both are whole. Source: KohakuBlueleaf/LyCORIS, functional/lokr.py.
    """

    w1: "tuple[Tensor, ...]"
    w2: "tuple[Tensor, ...]"
    alpha: float
    kernel: tuple[int, ...] = ()
    t2: "Tensor | None" = None
    rows: tuple[int, int] | None = None

    @property
    def factor_rank(self) -> int:
        """Rank of the factor that is stored as a pair; 0 if none is."""
        return self.w2[1].shape[0] if len(self.w2) == 2 else self.w1[1].shape[0] if len(self.w1) == 2 else 0

    @property
    def rank(self) -> int:
        (o1, i1), (o2, i2) = self._first(), self._second()
        one = self.w1[1].shape[0] if len(self.w1) == 2 else min(o1, i1)
        return one * (self.w2[1].shape[0] if len(self.w2) == 2 else min(o2, i2))

    @property
    def shape(self) -> tuple[int, ...]:
        (o1, i1), (o2, i2) = self._first(), self._second()
        begin, end = self.rows or (0, o1 * o2)
        return (end - begin, i1 * i2 // math.prod(self.kernel), *self.kernel)

    def delta(self) -> "Tensor":
        import torch

        o2 = self._second()[0]
        begin, end = self.rows or (0, self._first()[0] * o2)
        first = slice(begin // o2, -(-end // o2))  # no more rows of w1 than the range touches
        one = self.w1[0].float()[first] if len(self.w1) == 1 else self.w1[0].float()[first] @ self.w1[1].float()
        two = self.w2[0].float() if len(self.w2) == 1 else _product(self.w2[0], self.w2[1], self.t2)
        scale = self.alpha / self.factor_rank if self.factor_rank else 1.0
        product = torch.kron(one * scale, two.flatten(1))
        offset = begin - first.start * o2
        return product[offset : offset + end - begin].reshape(self.shape)

    def _first(self) -> tuple[int, int]:
        return self.w1[0].shape[0], self.w1[-1].shape[1]

    def _second(self) -> tuple[int, int]:
        """Rows and columns of w2, kernel included in the columns."""
        if self.t2 is not None:
            return self.w2[0].shape[1], self.w2[1].shape[1] * math.prod(self.t2.shape[2:])
        return self.w2[0].shape[0], math.prod(self.w2[-1].shape[1:])


@dataclass(frozen=True)
class Difference:
    """A full difference of the base weight or bias, as `.diff` and `.diff_b` keys store it."""

    weight: "Tensor"
    alpha: float = 1.0

    @property
    def rank(self) -> int:
        return min(self.weight.shape[0], self.weight[0].numel())

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)

    def delta(self) -> "Tensor":
        return self.weight.float()


@dataclass(frozen=True)
class Decomposed:
    """DoRA: V = W + layer's delta, then every row (output axis) or column (input axis) of V gets the length `magnitude`.

    magnitude: (out,) or (in,), whatever the file's shape. At strength s the base becomes W + s * delta(W). Source: arXiv 2402.09353.
    """

    layer: "LowRank | Hadamard | Kronecker | Difference"
    magnitude: "Tensor"
    axis: Literal["output", "input"] = "output"

    @property
    def rank(self) -> int:
        return self.layer.rank

    @property
    def alpha(self) -> float:
        return self.layer.alpha

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layer.shape

    def delta(self, base_weight: "Tensor") -> "Tensor":
        """The full difference in fp32 for this base weight."""
        import torch

        own = base_weight.float()
        moved = own + self.layer.delta()
        kept = 0 if self.axis == "output" else 1
        norm = torch.linalg.vector_norm(moved, dim=[d for d in range(moved.dim()) if d != kept], keepdim=True)
        wanted = self.magnitude.to(moved).reshape(norm.shape)
        return moved * torch.where(norm > 0, wanted / norm, 0) - own


Layer = LowRank | Hadamard | Kronecker | Difference | Decomposed


@dataclass(frozen=True)
class Adapter:
    """A trained LoRA in memory, independent of any file format.

    embeddings: textual inversions that came in the same file, by name and then by encoder as the file calls it (clip_l, clip_g, ...).
    unknown: keys of the file that mean nothing to the studio; reading refuses them unless it was asked to list them here.
    """

    family: str
    layers: Mapping[str, Layer]
    metadata: Mapping[str, str] = field(default_factory=dict)
    embeddings: "Mapping[str, Mapping[str, Tensor]]" = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


# Odd numbers of random bits as signed 64-bit words, in pairs: one for the place, one for the number.
SPARE = 4  # times as much as is needed may travel with it: zeros between the parts of fused layers
MOST_BUFFERS = 16  # that are moved as they are; more are put together first
_ODD = ((-7046029254386353131, -4417276706812531889), (1609587929392839161, -8796714831421723037))


def needs_base(layer: Layer) -> bool:
    """Whether the layer's difference depends on the base weight."""
    return isinstance(layer, Decomposed)


def delta(layer: Layer, base_weight: "Tensor") -> "Tensor":
    """The layer's full difference in fp32 on this base weight."""
    return layer.delta(base_weight) if isinstance(layer, Decomposed) else layer.delta()


def tensors(layer: Layer) -> "list[Tensor]":
    """Every tensor the layer is made of, in a fixed order."""
    import torch

    if isinstance(layer, LowRank):  # nearly all are, and there are thousands
        return [layer.down, layer.up]
    found: list[Tensor] = []
    for entry in dataclasses.fields(layer):
        value: Any = getattr(layer, entry.name)
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, tuple):
            found += [part for part in value if isinstance(part, torch.Tensor)]
        elif dataclasses.is_dataclass(value):
            found += tensors(value)  # type: ignore[arg-type]
    return found


def facts(layer: Layer) -> str:
    """What the layer is beside its numbers, in words that differ whenever the same tensors would give another delta."""
    if isinstance(layer, LowRank):
        return f"LowRank {layer.alpha!r}"
    inner = f" of {facts(layer.layer)}" if isinstance(layer, Decomposed) else ""
    words = [getattr(layer, name, None) for name in ("alpha", "kernel", "rows", "axis")]
    counts = [len(getattr(layer, name, ())) for name in ("w1", "w2")] + [getattr(layer, name, None) is not None for name in ("t1", "t2")]
    return f"{type(layer).__name__} {words} {counts}{inner}"


def carried(adapter: Adapter, device: "torch.device") -> tuple[str, dict[str, Layer]]:
    """A word for the adapter's numbers, and its layers in fp32 on the device.

    The word is the same for adapters of equal numbers and facts, wherever they were read from. Numbers are summed up on the device,
    each mixed with its place: far faster than hashing bytes, and good enough to tell adapters apart that nobody made to collide.
    Numbers travel in a few large copies, as thousands of small ones would take longer than all the rest.
    """
    import torch

    found = {path: tensors(adapter.layers[path]) for path in sorted(adapter.layers)}
    values = [value for own in found.values() for value in own]
    said = [(path, facts(adapter.layers[path])) for path in found]
    spoken = {f"{word} {name}": rows for word, vectors in sorted(adapter.embeddings.items()) for name, rows in sorted(vectors.items())}
    told = [[(tuple(value.shape), str(value.dtype)) for value in (*values, *spoken.values())], list(spoken)]
    sums: list[int] = []
    wide: dict[torch.dtype, Iterator[Tensor]] = {}
    for dtype, flat in _flats([value.detach() for value in (*values, *spoken.values())], device).items():
        sums += _summed(flat)
        wide[dtype] = iter(flat.float().split([value.numel() for value in (*values, *spoken.values()) if value.dtype == dtype]))
    word = hashlib.sha256(repr((adapter.family, said, told, sums)).encode()).hexdigest()
    there = iter([next(wide[value.dtype]).view(value.shape) for value in values])
    return word, {path: _replaced(adapter.layers[path], there) for path in found}


def _summed(flat: "Tensor") -> list[int]:
    """Two sums of all bits, each number mixed with its place."""
    import torch

    bits = flat.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.dtype.itemsize]).long()
    place = torch.arange(len(bits), device=flat.device)
    sums = []
    for first, second in _ODD:
        mixed = (bits + place * first) * second
        mixed = (mixed ^ (mixed >> 29)) * first
        sums.append((mixed ^ (mixed >> 32)).sum())
    return torch.stack(sums).tolist()


def _flats(values: "list[Tensor]", device: "torch.device") -> "dict[torch.dtype, Tensor]":
    """For each number format all tensors of it one after the other, on the device. Views of few buffers, as those of a file are, travel with all of them."""
    import torch

    kinds = {dtype: [value for value in values if value.dtype == dtype] for dtype in dict.fromkeys(value.dtype for value in values)}
    buffers = {value.untyped_storage().data_ptr(): value.untyped_storage() for value in values}
    needed = sum(value.numel() * value.itemsize for value in values)
    if any(value.device == device for value in values) or len(buffers) > MOST_BUFFERS or sum(map(len, buffers.values())) > SPARE * needed:
        return {dtype: torch.cat([value.flatten() for value in same]).to(device) for dtype, same in kinds.items()}
    there = {place: torch.empty(0, dtype=torch.uint8).set_(buffer).to(device).untyped_storage() for place, buffer in buffers.items()}
    found = {}
    for dtype, same in kinds.items():
        whole = {place: torch.empty(0, dtype=dtype, device=device).set_(buffer) for place, buffer in there.items()}
        pieces = []
        for value in same:
            begin, buffer = value.storage_offset(), whole[value.untyped_storage().data_ptr()]
            alike = value.is_contiguous()
            pieces.append(buffer[begin : begin + value.numel()] if alike else buffer.as_strided(value.shape, value.stride(), begin).flatten())
        found[dtype] = torch.cat(pieces)
    return found


def _replaced(layer: Any, values: "Iterator[Tensor]") -> Any:
    """The layer with other tensors, given in the order of `tensors`."""
    import torch

    if isinstance(layer, LowRank):
        return LowRank(next(values), next(values), layer.alpha)

    def other(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return next(values)
        if isinstance(value, tuple):
            return tuple(other(part) for part in value)
        return _replaced(value, values) if dataclasses.is_dataclass(value) else value

    return dataclasses.replace(layer, **{entry.name: other(getattr(layer, entry.name)) for entry in dataclasses.fields(layer)})


def _product(a: "Tensor", b: "Tensor", core: "Tensor | None") -> "Tensor":
    """a @ b, or a core (r, r, k, k) between a (r, out) and b (r, in); flat behind the first axis, always a new tensor."""
    import torch

    if core is None:
        return a.float() @ b.float().flatten(1)
    return torch.einsum("ijkl,io,jn->onkl", core.float(), a.float(), b.float()).flatten(1)
