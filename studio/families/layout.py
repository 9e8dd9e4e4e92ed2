"""How a model lies in files: sections of a single file, each with the tensors of one part of the pipeline."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Rename = Callable[["Mapping[str, Tensor]"], "dict[str, Tensor]"]


@dataclass(frozen=True)
class Section:
    """Tensors whose names begin with `prefix` make the pipeline's `part`.

    Both ways take tensors named without the prefix. A tensor of the file stands for one or more of the part's (`from_file` of it alone
    gives those), and `to_file` of those alone gives it back.
    """

    prefix: str
    part: str
    to_file: Rename
    from_file: Rename


def prefixed(prefix: str, part: str, inner: str = "") -> Section:
    """A section whose tensors are called as in the part, there with `inner` before them."""

    def to_file(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        return {name.removeprefix(inner): tensor for name, tensor in tensors.items()}

    def from_file(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        return {inner + name: tensor for name, tensor in tensors.items()}

    return Section(prefix, part, to_file, from_file)
