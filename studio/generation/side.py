"""The side path of one layer: what a whole stack adds to its output, in two products whatever the number of adapters.

    y = base(x) + up @ (strengths * (down @ x))

down and up are the factors of all adapters one after the other. Strengths that are the same for every image and step are folded into
`up`; others stand between the two products, one row an image.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

MULTIPLE = 8  # ranks are filled up to it with zeros, as matrix units like it


@dataclass
class Side:
    """Buffers on the layer's device in the base's number format. down (R, in[, k, k]), up (out, R[, 1, 1]), strengths (B, R) or None."""

    down: "Tensor"
    up: "Tensor"
    strengths: "Tensor | None" = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def fits(module: "Module") -> bool:
    """Whether a side path can run beside this module."""
    from torch import nn

    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros")


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
    from torch.nn.functional import linear

    def forward(self: Any, x: "Tensor", *rest: Any) -> "Tensor":
        side: Side = self._side
        y = kind.forward(self, x, *rest)
        inner = linear(x.to(side.down.dtype), side.down)
        if side.strengths is not None:
            rows = side.strengths.repeat(x.shape[0] // side.strengths.shape[0], 1)
            inner = inner * rows.view(-1, *[1] * (x.dim() - 2), side.rank)
        if y.dtype != side.up.dtype:
            return y + linear(inner, side.up).to(y.dtype)
        return y.view(-1, y.shape[-1]).addmm(inner.view(-1, side.rank), side.up.t()).view(y.shape)

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
