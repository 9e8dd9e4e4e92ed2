"""What a denoiser is made of and what passes through it, by its config alone: sizes for a memory plan, without weights and without torch.

A unit is what gradient checkpointing recomputes as one. Sizes are of one picture and in numbers, not bytes.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

INSIDE = 3  # a layer of the repeated blocks is named by at least so many words: block, number, layer


@dataclass(frozen=True)
class Layer:
    """A module with weights. shape: (out, in), (out, in, k, k), or (width,) of a norm.

    rows: how often it is applied to one picture. reads: name of the tensor it reads. wakes: tensors that are kept once it is trained.
    """

    name: str
    shape: tuple[int, ...]
    bias: bool = True
    rows: int = 0
    reads: str = ""
    wakes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        return prod(self.shape) + (self.shape[0] if self.bias else 0)

    @property
    def linear(self) -> bool:
        return len(self.shape) == 2

    @property
    def repeated(self) -> bool:
        """Whether it stands in a numbered block, as those do that are quantised."""
        return any(word.isdecimal() for word in self.name.split(".")[1:-1])

    @property
    def inputs(self) -> int:
        return prod(self.shape[1:])

    @property
    def outputs(self) -> int:
        return self.shape[0]


@dataclass(frozen=True)
class Unit:
    """tensors: by name, those that are made in it. keeps: what the backward pass reads if the base is frozen and the input has a gradient.

    lean: the same in recorded steps, whose norms and gates make again what they need. given: what it is handed, kept where it is
    recomputed. block: name of the repeated block it belongs to, empty outside of any. recomputed: whether checkpointing reaches it.
    """

    name: str
    layers: tuple[Layer, ...]
    tensors: Mapping[str, int]
    keeps: frozenset[str]
    lean: frozenset[str]
    given: int = 0
    block: str = ""
    recomputed: bool = True

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    def kept(self, trained: Iterable[Layer], *, lean: bool) -> int:
        """Numbers kept for the backward pass, the inputs of trained layers among them."""
        names = set(self.lean if lean else self.keeps)
        for layer in trained:
            names |= {layer.reads, *layer.wakes} - {""}
        return sum(self.tensors[name] for name in names)

    @property
    def largest(self) -> int:
        return max(self.tensors.values(), default=0)


@dataclass(frozen=True)
class Anatomy:
    """A denoiser at one size of picture. shared: tensors that many layers read, such as the text's, once."""

    units: tuple[Unit, ...]
    shared: int = 0
    latents: int = 0
    conditioning: int = 0

    def layers(self) -> Iterator[Layer]:
        for unit in self.units:
            yield from unit.layers

    @property
    def parameters(self) -> int:
        return sum(unit.parameters for unit in self.units)


@dataclass(frozen=True)
class Encoder:
    """A part that is there only for caching. working: numbers in flight at its peak for one picture or caption; own: bytes of its number if it has one."""

    name: str
    parameters: int
    working: int
    own: int | None = None
    trainable: bool = False
    traced: int = 0  # numbers kept for the backward pass where it is trained


@dataclass
class Gathering:
    """The layers and tensors of a unit while it is written down."""

    prefix: str
    layers: list[Layer] = field(default_factory=list)
    tensors: dict[str, int] = field(default_factory=dict)

    def tensor(self, name: str, n: int) -> str:
        self.tensors[name] = n
        return name

    def linear(self, name: str, inputs: int, outputs: int, rows: int, reads: str = "", *, bias: bool = True, wakes: tuple[str, ...] = ()) -> None:
        self.layers.append(Layer(self.prefix + name, (outputs, inputs), bias, rows, reads, wakes))

    def conv(self, name: str, inputs: int, outputs: int, rows: int, reads: str = "", kernel: int = 3) -> None:
        self.layers.append(Layer(self.prefix + name, (outputs, inputs, kernel, kernel), True, rows, reads))

    def norm(self, name: str, width: int, *, bias: bool = True) -> None:
        self.layers.append(Layer(self.prefix + name, (width,), bias))

    def unit(self, keeps: str, lean: str, *, given: int = 0, block: str = "", recomputed: bool = True) -> Unit:
        """keeps, lean: names of tensors, by blanks."""
        name = self.prefix.rstrip(".")
        return Unit(name, tuple(self.layers), self.tensors, frozenset(keeps.split()), frozenset(lean.split()), given, block, recomputed)


def several(value: Any, n: int) -> list[int]:
    """A setting of diffusers that is one number for all blocks or one for each."""
    return [int(value)] * n if isinstance(value, int) else [int(one) for one in value]
