"""The side path of one layer: what a whole stack adds to its output, in two products whatever the number of adapters.

    y = base(x) + up @ (strengths * (down @ x))

down and up are the factors of all adapters one after the other. Strengths that are the same for every image and step are folded into
`up`; others stand between the two products, one row an image. Layers that see one input (the query, key and value of an attention, the
keys and values of all attentions to the text) are a group: the first of them that runs takes the products of all.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

MULTIPLE = 8  # ranks are filled up to it with zeros, as matrix units like it


@dataclass(eq=False)
class Side:
    """What one layer has of its group's buffers. down (R, in[, k, k]), up (out, R[, 1, 1]); columns of the group's inner product."""

    group: "Group"
    down: "Tensor"
    up: "Tensor"
    columns: slice

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def strengths(self) -> "Tensor | None":
        """(B, R), or None where they are folded into `up`."""
        return None if self.group.strengths is None else self.group.strengths[:, self.columns]


@dataclass(eq=False)
class Group:
    """Side paths beside layers that see one input, on the layers' device in the base's number format.

    down (R, in[, k, k]): those of all layers. strengths (B, R) or None. whole: for each row of layers of one shape without a bias, which
    lie one after the other, the first column and all `up` (n, out, r).
    """

    down: "Tensor"
    strengths: "Tensor | None" = None
    whole: "list[tuple[int, Tensor]]" = field(default_factory=list)
    sides: list[Side] = field(default_factory=list)
    _first: Side | None = None  # which of them runs before all others
    _x: "Tensor | None" = None  # the input that `_found` is of, as long as one of `_left` has not asked
    _inner: "Tensor | None" = None
    _added: "dict[Side, Tensor]" = field(default_factory=dict)
    _left: set[Side] = field(default_factory=set)

    def products(self, side: Side, x: "Tensor") -> "tuple[Tensor, Tensor | None]":
        """(tokens, r): the layer's inner product, strengths included; and (tokens, out), what is added to its output, if that is there already."""
        if len(self.sides) == 1:
            return self._narrow(x, self.down, self.strengths), None
        if x is not self._x or side not in self._left:
            if self._first not in (None, side):  # another input than the first one's: this layer goes alone
                return self._narrow(x, side.down, side.strengths), None
            self._first = side
            self._take(x)
        assert self._inner is not None
        self._left.discard(side)
        found = self._inner[:, side.columns], self._added.pop(side, None)
        if not self._left:
            self.drop()
        return found

    def drop(self) -> None:
        """Forget the products at hand."""
        self._x = self._inner = None
        self._added, self._left = {}, set()

    def begin(self) -> None:
        """Nothing is known any more about which layer runs first."""
        self.drop()
        self._first = None

    def _take(self, x: "Tensor") -> None:
        import torch

        inner = self._narrow(x, self.down, self.strengths)
        self._x, self._inner, self._left, self._added = x, inner, set(self.sides), {}
        if torch.is_grad_enabled() or x.dtype != self.down.dtype:
            return
        for begin, up in self.whole:
            n, _, rank = up.shape
            columns = inner[:, begin : begin + n * rank].unflatten(1, (n, rank)).transpose(0, 1)
            sides = [side for side in self.sides if begin <= side.columns.start < begin + n * rank]
            self._added |= zip(sides, torch.bmm(columns, up.transpose(1, 2)), strict=True)

    def _narrow(self, x: "Tensor", down: "Tensor", strengths: "Tensor | None") -> "Tensor":
        from torch.nn.functional import linear

        inner = linear(x.to(down.dtype), down)
        if strengths is not None:
            rows = strengths.repeat(x.shape[0] // strengths.shape[0], 1)
            inner = inner * rows.view(-1, *[1] * (x.dim() - 2), down.shape[0])
        return inner.reshape(-1, down.shape[0])


def fits(module: "Module") -> bool:
    """Whether a side path can run beside this module."""
    from torch import nn

    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros")


def adds_up(module: Any) -> bool:
    """Whether the module's output is a product alone, which can be added to what a side path has put out before."""
    from torch import nn

    kind = getattr(type(module), "_without_side", type(module))
    return kind is nn.Linear and module.bias is None and type(module.weight) is nn.Parameter and module.weight.is_floating_point()


def shapes(module: Any, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of `down` and `up` beside this module."""
    from torch import nn

    if isinstance(module, nn.Conv2d):
        return (rank, module.in_channels, *module.kernel_size), (module.out_channels, rank, 1, 1)
    return (rank, module.in_features), (module.out_features, rank)


def attach(module: "Module", side: Side) -> None:
    """Let the module's output include the side path. Only its class changes, so hooks, parameters and names stay as they are."""
    module._side = side  # type: ignore[assignment]
    if not hasattr(type(module), "_without_side"):
        module.__class__ = _with_side(type(module))


def detach(module: "Module") -> None:
    """The module as it was."""
    without = getattr(type(module), "_without_side", None)
    if without is not None:
        module.__class__ = without
        del module._side


_classes: dict[type, type] = {}


def _with_side(kind: type) -> type:
    from torch import nn

    if kind not in _classes:
        forward = _convolution(kind) if issubclass(kind, nn.Conv2d) else _linear(kind)
        _classes[kind] = type(kind.__name__, (kind,), {"_without_side": kind, "forward": forward})
    return _classes[kind]


def _linear(kind: Any) -> Any:
    import torch
    from torch.nn.functional import linear

    def forward(self: Any, x: "Tensor", *rest: Any) -> "Tensor":
        side: Side = self._side
        inner, added = side.group.products(side, x)
        if added is not None:
            return added.addmm_(x.reshape(-1, x.shape[-1]), self.weight.t()).view(*x.shape[:-1], added.shape[-1])
        y = kind.forward(self, x, *rest)
        if y.dtype != side.up.dtype or torch.is_grad_enabled():
            return y + linear(inner, side.up).to(y.dtype).view(y.shape)
        y.view(-1, y.shape[-1]).addmm_(inner, side.up.t())  # y is this call's own: nothing is copied
        return y

    return forward


def _convolution(kind: Any) -> Any:
    from torch.nn.functional import conv2d

    def forward(self: Any, x: "Tensor") -> "Tensor":
        side: Side = self._side
        inner = conv2d(x, side.down, None, self.stride, self.padding, self.dilation)
        if side.strengths is not None:
            inner = inner * side.strengths.repeat(x.shape[0] // side.strengths.shape[0], 1)[:, :, None, None]
        return kind.forward(self, x) + conv2d(inner, side.up)

    return forward
