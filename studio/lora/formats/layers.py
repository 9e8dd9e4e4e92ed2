"""The tensors of one module of a file -> its layer, in fp32 and checked."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from studio.errors import FormatError
from studio.families import sdxl_names
from studio.lora.adapter import Decomposed, Difference, Hadamard, Kronecker, Layer, LowRank
from studio.lora.formats import names
from studio.lora.formats.identity import Identity

if TYPE_CHECKING:
    from torch import Tensor

_NEEDED = {
    "low rank": ("down", "up"),
    "LoHa": ("w1_a", "w1_b", "w2_a", "w2_b"),
}
_HALVES = {"down": "down half", "up": "up half"}


@dataclass(frozen=True)
class Known:
    """What is settled about a file before its layers are made. stored: low-rank layers keep its number format."""

    identity: Identity
    stored: bool = False


@dataclass(frozen=True)
class Part:
    """One module of a file: where it comes from and which tensors of a layer it has, by kind."""

    file: str
    module: str
    target: names.Target
    tensors: "Mapping[str, Tensor]"
    stored: bool = False

    def wrong(self, words: str) -> FormatError:
        return FormatError(f"{self.file}: layer {self.module!r} {words}")

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel of the convolution that the layer is for; empty for linear layers and norms."""
        path = self.target.paths[0].partition(".")[2]
        if self.target.family != "sdxl" or not sdxl_names.is_convolution(path) or "norm" in path.rpartition(".")[2]:
            return ()
        return (1, 1) if path.endswith("conv_shortcut") else (3, 3)


def assemble(part: Part, stated: Callable[[str, int], float]) -> tuple[Layer | None, "Tensor | None"]:
    """The layer of the module's weight, and the difference of its bias. stated: alpha by module and rank where there is no tensor of it."""
    alpha = _alpha(part)
    layer = _weight(part, alpha, stated)
    bias = part.tensors["diff_b"].float().flatten() if "diff_b" in part.tensors else None
    if "up_bias" in part.tensors:
        if not isinstance(layer, LowRank):
            raise part.wrong("has a bias but no low-rank halves; the file is incomplete")
        bias = part.tensors["up_bias"].float().flatten() * (layer.alpha / layer.rank)
    magnitude = part.tensors.get("magnitude", part.tensors.get("peft_magnitude"))
    if magnitude is None:
        return layer, bias
    if layer is None or isinstance(layer, Decomposed):
        raise part.wrong("has a DoRA magnitude alone; the file is incomplete")
    return _decomposed(part, layer, magnitude.float(), peft="peft_magnitude" in part.tensors), bias


def plain(part: Part) -> LowRank | None:
    """The layer of a module that is nothing but a sound pair of matrices in the file's format with its alpha, as nearly all are; else None.

    What `assemble` makes of it too, without looking for anything else.
    """
    kinds = part.tensors
    if not part.stored or len(kinds) != 3 or not part.target.plain or part.kernel:
        return None
    down, up, alpha = kinds.get("down"), kinds.get("up"), kinds.get("alpha")
    if down is None or up is None or alpha is None or down.dtype != up.dtype or down.dtype.itemsize < 2:
        return None
    (shape, other), value = (down.shape, up.shape), alpha.item() if alpha.numel() == 1 else -1
    return LowRank(down, up, float(value)) if len(shape) == len(other) == 2 and other[1] == shape[0] and value >= 0 else None


def finite(parts: "Sequence[Part]") -> None:
    """Raise FormatError naming the first tensor that holds infinities or values that are no numbers.

    A sum tells of any at a fraction of the time that looking at every number takes; only where one is not finite, numbers are looked at.
    """
    import torch

    sums = [tensor.float().sum() if tensor.dtype.itemsize < 2 else tensor.sum(dtype=torch.float32) for part in parts for tensor in part.tensors.values()]
    if not sums or torch.stack(sums).isfinite().all():
        return
    for part in parts:
        for kind, tensor in part.tensors.items():
            if not torch.isfinite(tensor.float()).all():
                raise part.wrong(f"holds values that are no numbers (its {kind}); it was saved from a run that diverged")


def _alpha(part: Part) -> float | None:
    if "alpha" not in part.tensors:
        return None
    alpha = part.tensors["alpha"].float().reshape(-1)
    if alpha.numel() != 1:
        raise part.wrong("has an alpha that is no single number")
    if float(alpha) < 0:
        raise part.wrong(f"has a negative alpha ({float(alpha):g}); use a negative weight instead")
    return float(alpha)


def _weight(part: Part, alpha: float | None, stated: Callable[[str, int], float]) -> Layer | None:
    kinds = part.tensors
    forms = [form for form, mark in (("full", "diff"), ("LoHa", "w1_a"), ("LoKr", "kron_w"), ("low rank", "down")) if any(k.startswith(mark) for k in kinds)]
    forms = [form for form in forms if form != "full" or "diff" in kinds]
    if len(forms) > 1:
        raise part.wrong(f"is {' and '.join(forms)} at once; the file is broken")
    if forms == ["full"]:
        return Difference(_fitting(part, kinds["diff"].float()))
    if forms == ["LoKr"]:
        return _kronecker(part, alpha)
    if not forms and not {"up", "alpha"} & set(kinds):
        return None  # a bias alone
    form = forms[0] if forms else "low rank"
    for kind in _NEEDED[form]:
        if kind not in kinds:
            raise part.wrong(f"lacks its {_HALVES.get(kind, kind)}; the file is incomplete")
    if form == "LoHa":
        return _hadamard(part, alpha)
    return _low_rank(part, alpha, stated)


def _low_rank(part: Part, alpha: float | None, stated: Callable[[str, int], float]) -> LowRank:
    import torch

    down, up = part.tensors["down"], part.tensors["up"]
    if not (part.stored and down.dtype == up.dtype and down.dtype.itemsize > 1):
        down, up = down.float(), up.float()
    mid = part.tensors.get("mid")
    if mid is not None:
        sound = mid.dim() == 4 and down.dim() >= 2 and mid.shape[1] == down.shape[0] and down[0].numel() == down.shape[1]
        if not sound or not _fits_kernel(part, mid):
            raise part.wrong(f"has a core of shape {list(mid.shape)} that does not multiply with {list(down.shape)}")
        down, up = torch.einsum("ijkl,jn->inkl", mid.float(), down.float().flatten(1)), up.float()
    if down.dim() not in (2, 4) or up.dim() not in (2, 4) or not down.numel() or up.shape[1] != down.shape[0] or up.flatten(1).shape[1] != up.shape[1]:
        raise part.wrong(f"has shapes {list(down.shape)} and {list(up.shape)}, which do not multiply")
    if not part.kernel:
        if down.flatten(1).shape[1] != down.shape[1]:
            raise FormatError(f"{part.file}: {part.target.paths[0]} is a linear layer, the file has a convolution of shape {list(down.shape)} for it")
        down, up = down.flatten(1), up.flatten(1)
    elif up.dim() == 2:
        up = up[:, :, None, None]
    rank = down.shape[0]
    return LowRank(down, up, stated(part.module, rank) if alpha is None else alpha)


def _hadamard(part: Part, alpha: float | None) -> Hadamard:
    w1_a, w1_b, w2_a, w2_b = (part.tensors[kind].float() for kind in _NEEDED["LoHa"])
    t1, t2 = part.tensors.get("t1"), part.tensors.get("t2")
    sound = (t1 is None) == (t2 is None) and all(core is None or _fits_kernel(part, core) for core in (t1, t2))
    if not sound or any(tensor.dim() != 2 for tensor in (w1_a, w1_b, w2_a, w2_b)):
        raise part.wrong("is a LoHa layer whose tensors do not belong together")
    kernel = part.kernel if t1 is None else tuple(t1.shape[2:])
    rank = w1_b.shape[0]
    layer = Hadamard(w1_a, w1_b, w2_a, w2_b, float(rank) if alpha is None else alpha, kernel, *(t if t is None else t.float() for t in (t1, t2)))
    if t1 is None:
        fits = w1_a.shape[1] == rank and w2_a.shape[1] == w2_b.shape[0] and w1_a.shape[0] == w2_a.shape[0] and w1_b.shape[1] == w2_b.shape[1]
    else:
        fits = t1.dim() == 4 and t1.shape[2:] == t2.shape[2:] and w1_a.shape[1] == w2_a.shape[1] and w1_b.shape[1] == w2_b.shape[1]  # type: ignore[union-attr]
        pairs = ((t1, w1_a, w1_b), (t2, w2_a, w2_b))
        fits = fits and all(core is not None and core.shape[:2] == (a.shape[0], b.shape[0]) for core, a, b in pairs)
    if not fits or not rank or w1_b.shape[1] % (1 if t1 is not None else _area(kernel)):
        shapes = [list(tensor.shape) for tensor in (w1_a, w1_b, w2_a, w2_b)]
        raise part.wrong(f"has LoHa shapes {shapes}, which do not multiply")
    return layer


def _kronecker(part: Part, alpha: float | None) -> Kronecker:
    found = {kind: tensor.float() for kind, tensor in part.tensors.items() if kind.startswith("kron_")}
    core = found.get("kron_t2")
    if core is not None and not _fits_kernel(part, core):
        raise part.wrong(f"has a LoKr core of shape {list(core.shape)}, which is of no such module")
    pairs = []
    for name in ("kron_w1", "kron_w2"):
        pair = tuple(found[kind] for kind in (name, f"{name}_a", f"{name}_b") if kind in found)
        if len(pair) != (1 if name in found else 2):
            raise part.wrong("is a LoKr layer that has not both of its factors; the file is broken")
        pairs.append(pair)
    w1, w2 = pairs
    sound = all(tensor.dim() == 2 for tensor in w1) and all(tensor.dim() >= 2 and tensor.numel() for tensor in (*w1, *w2))
    sound = sound and all(len(pair) == 1 or (i and core is not None) or pair[0].shape[1] == pair[1].shape[0] for i, pair in enumerate((w1, w2)))
    kernel = tuple(core.shape[2:]) if core is not None else tuple(w2[0].shape[2:]) if len(w2) == 1 and w2[0].dim() == 4 else part.kernel
    if sound and not part.kernel and _area(kernel) == 1 and len(w2) == 1:
        w2, kernel = (w2[0].flatten(1),), ()
    if sound and core is not None:
        sound = len(w2) == 2 and core.dim() == 4 and core.shape[:2] == (w2[0].shape[0], w2[1].shape[0])
    if not sound:
        raise part.wrong(f"has LoKr shapes {[list(tensor.shape) for tensor in found.values()]}, which do not multiply")
    layer = Kronecker(w1, w2, 0.0, kernel, core)
    columns = layer.shape[1] * _area(kernel)
    if columns % _area(kernel) or not layer.shape[1]:
        raise part.wrong("has a LoKr kernel that does not divide its columns")
    return replace(layer, alpha=float(layer.factor_rank or 1) if alpha is None else alpha)


def _decomposed(part: Part, layer: "LowRank | Hadamard | Kronecker | Difference", magnitude: "Tensor", peft: bool) -> Decomposed:
    out, into = layer.shape[0], layer.shape[1] if len(layer.shape) > 1 else 1
    n = magnitude.numel()
    # (1, in[, 1, 1]) is by columns, (out, 1[, 1, 1]) and (out,) by rows; PEFT's are by rows in any shape.
    columns = not peft and magnitude.dim() > 1 and magnitude.shape[0] == 1 and magnitude.shape[1] == n and n > 1
    if n != (into if columns else out):
        raise part.wrong(f"has a DoRA magnitude of shape {list(magnitude.shape)}, which fits neither its {out} rows nor its {into} columns")
    return Decomposed(layer, magnitude.flatten(), "input" if columns else "output")


def _fitting(part: Part, weight: "Tensor") -> "Tensor":
    """A difference in the shape of the module: linear layers have two dimensions, whatever the file kept."""
    return weight.flatten(1) if not part.kernel and weight.dim() == 4 and weight[0].numel() == weight.shape[1] else weight


def _fits_kernel(part: Part, core: "Tensor") -> bool:
    """Whether a core is of the module's own kernel; a larger one could make a layer of any size out of a small file."""
    return core.dim() == 4 and tuple(core.shape[2:]) == (part.kernel or (1, 1))


def _area(kernel: tuple[int, ...]) -> int:
    return math.prod(kernel)
