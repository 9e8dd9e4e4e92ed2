"""Several LoRAs on one base at once, without ever changing what the base is.

Baked, a layer's weight becomes round(W + sum of weight * delta), computed from the base's own tensor in fp32 and rounded once; taking
the stack away puts that tensor back, so the base is the same bit for bit. Live, the weight stays and a side path adds the sum to the
layer's output: strengths may then move from step to step and differ from image to image, and the base may be quantised.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.config import LoraWeight
from studio.errors import FormatError
from studio.families import FAMILIES
from studio.families.base import Components
from studio.generation import sharing, strengths
from studio.generation.adding import Sums
from studio.generation.baked import Baked, Recipe
from studio.generation.live import Live
from studio.generation.sharing import Mode, Shared
from studio.generation.side import fits
from studio.generation.strengths import Strength
from studio.generation.words import Brought, brought
from studio.lora.adapter import Adapter, Layer, carried, delta
from studio.lora.attach import module_map
from studio.lora.formats import LoadReport, report
from studio.lora.products import low_rank, whole

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Parameter

    Factors = tuple[Tensor, Tensor]

CACHED = 4  # adapters whose factors stay on the device after they left the stack
Rows = Sequence[tuple[Adapter, Strength]]


@dataclass(frozen=True)
class StackReport:
    """How each row fits the base, in the order given; None for a row that is off. How the stack acts, and why."""

    rows: tuple[LoadReport | None, ...]
    names: tuple[str, ...]
    baked: int = 0  # layers that were computed anew
    live: int = 0  # layers with a side path
    reason: str = ""
    told: tuple[str, ...] = ()  # of new words

    @property
    def mode(self) -> str:
        return "live" if self.live else "baked"

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each row that fits in part."""
        found = []
        for name, row in zip(self.names, self.rows, strict=True):
            if row and (row.missing or row.mismatched):
                wrong = [*row.missing, *row.mismatched]
                found.append(f"LoRA {name}: {len(wrong)} of {len(wrong) + len(row.matched)} layers do not fit this base and are left out, first {wrong[0]}")
        return tuple(dict.fromkeys([*found, *self.told]))


class Stack:
    """The adapters on one loaded base. `set` may be called any number of times; `clear` gives the base back."""

    def __init__(self, c: Components):
        self._c = c
        self._modules: dict[str, Any] = dict(module_map(c))
        self._weights = _parameters(self._modules)
        self._quantised = {path for path in self._modules if _is_quantised(self._weights.get(path))}
        self._baked = Baked(self._weights)
        self._live = Live(self._modules, self._place, self._input)
        self._spoken = Live(self._modules, self._place)  # on quantised text encoders
        self._shapes = {path: self._shape(path) for path in {**self._modules, **self._weights}}
        self._rows: list[tuple[LoraWeight, ...]] = []  # image by image; called by the adapters' keys
        self._shared = Shared({}, {}, "")
        self._placed: dict[str, dict[str, Layer]] = {}  # adapter's key -> its matching layers, on the base's device
        self._reports: dict[str, LoadReport] = {}  # adapter's key -> how it fits
        self._factors: dict[str, dict[str, Factors | None]] = {}  # and their factors, once they were needed
        self._keys: dict[int, tuple[Adapter, str]] = {}
        self._arrived: dict[int, dict[str, Layer]] = {}  # by the adapter's id: on the device, and not yet placed
        self._words: list[Brought] = []  # new words, image by image

    def set(self, rows: Rows, names: Sequence[str] = (), mode: Mode = "auto") -> StackReport:
        """Make the stack exactly these adapters at these strengths; weight 0 is the same as leaving the row out.

        The order of rows makes no difference to any bit. Only layers whose sum changes are computed. Raises FormatError if an
        adapter fits nowhere or makes a weight infinite, SettingsError if a strength has no meaning here; the base is then as if
        there were no stack.
        """
        return self.set_each([rows], [names], mode)

    def set_each(self, stacks: Sequence[Rows], names: Sequence[Sequence[str]], mode: Mode = "auto") -> StackReport:
        """Several stacks at once, one for each image of a batch. The text encoders have that of the first; see `speak`."""
        called = [name for rows, said in zip(stacks, names, strict=True) for name in (said or _names(rows))]
        rows = [row for stack in stacks for row in stack]
        try:
            reports = tuple(self._fit(adapter, strengths.row_of(strength, name)) for (adapter, strength), name in zip(rows, called, strict=True))
            on = [[(adapter, strength) for adapter, strength in stack if not strengths.row_of(strength, "").off] for stack in stacks]
            self._rows = [sharing.gather([strengths.row_of(strength, self._key(adapter)) for adapter, strength in stack]) for stack in on]
            self._words = [self._bring(stack, said or _names(stack)) for stack, said in zip(stacks, names, strict=True)]
            self._shared = sharing.share(self._rows, self._placed, self._c.facts, mode, self)
            baked, finite = self._baked.set({**self._shared.baked, **self._text(0)}, self._adding)
            sound = self._live.set(self._shared.live, len(stacks), self._products) and self._whisper(0)
            if not (finite and sound):
                raise FormatError(f"LoRA {', '.join(called)}: these weights make numbers beyond {self._c.dtype}; lower the weights, or the file is broken")
        except BaseException:
            self.clear()
            self._forget([])
            raise
        self._insert(0)
        self._forget([adapter for adapter, _ in rows])
        told = tuple(line for brought in self._words for line in brought.told)
        return StackReport(reports, tuple(called), baked, self._live.layers + self._spoken.layers, self._shared.reason, told)

    def at(self, position: float) -> None:
        """Move scheduled strengths to a share of the denoising: 0 is the first step, 1 the last."""
        self._live.at(position)

    def speak(self, image: int) -> None:
        """Put the stack of this image of the batch on the text encoders: its prompt is encoded next."""
        self._baked.set({**self._shared.baked, **self._text(image)}, self._adding)
        self._whisper(image)
        self._insert(image)

    def clear(self) -> None:
        """Put every tensor of the base back and take every side path off."""
        self._live.clear()
        self._spoken.clear()
        self._baked.clear()
        self._rows, self._shared, self._words = [], Shared({}, {}, ""), []
        self._insert(0)

    @property
    def layout(self) -> str:
        """A word for where the stack's numbers lie: a captured graph of the denoiser stays right as long as it is the same."""
        return self._live.layout

    def fingerprint(self, parts: Sequence[str] = (), image: int = 0) -> str:
        """A word for what the stack does to the base, or to some of its parts; empty if nothing."""
        made = [str(row) for row in (self._rows[image] if self._rows else ())]
        if parts:
            text = [(row.name, part, strengths.on_path(row, f"{part}.", self._c.facts)) for row in self._rows[image] for part in parts] if self._rows else []
            made = [f"{key} {part} {weight!r}" for key, part, weight in text if weight and any(path.startswith(f"{part}.") for path in self._placed[key])]
            made += self._words[image].keys if self._words else ()
        return hashlib.sha256(repr(made).encode()).hexdigest()[:16] if made else ""

    def is_quantised(self, path: str) -> bool:
        """Whether the layer's weight is stored in fewer bits than can be added to."""
        return path in self._quantised

    def has_side(self, key: str, path: str) -> bool:
        """Whether the adapter's layer there is a short product that a side path can run."""
        return self.takes_side(path) and self._short(key, path) is not None

    def takes_side(self, path: str) -> bool:
        """Whether a side path can run beside this layer at all; biases and norms take none."""
        return path in self._modules and fits(self._modules[path])

    def _fit(self, adapter: Adapter, row: LoraWeight) -> LoadReport | None:
        """Check a row against the base and keep the adapter's matching layers."""
        if row.off:
            return None
        own = self._c.facts
        if adapter.family != own.name:
            other = FAMILIES[adapter.family].facts.title if adapter.family in FAMILIES else adapter.family
            raise FormatError(f"LoRA {row.name} is for {other}, the base {self._c.base.name} is {own.title}; choose a LoRA or a base of the same family")
        strengths.check(row, own)
        key = self._key(adapter)
        found = self._reports.get(key) or report(adapter, self._shapes)
        if not found.matched and (adapter.layers or not adapter.embeddings):
            first = next(iter([*found.missing, *found.mismatched]), "it has none")
            raise FormatError(
                f"LoRA {row.name} ({own.title}) has no layer that fits the base {self._c.base.name} ({own.title}): {first}; choose the base it was trained on"
            )
        self._reports[key] = found
        layers = self._arrived.pop(id(adapter), {})
        if key not in self._placed:
            self._placed[key] = {path: layers[path] for path in found.matched}
        return found

    def _key(self, adapter: Adapter) -> str:
        """A name for the adapter's numbers, the same for equal numbers wherever they were read from."""
        known = self._keys.get(id(adapter))
        if known is None:
            key, self._arrived[id(adapter)] = carried(adapter, self._c.device)
            known = self._keys[id(adapter)] = (adapter, key)
        return known[1]

    def _bring(self, rows: Rows, names: Sequence[str]) -> Brought:
        """The new words of one image's stack."""
        on = [(name, adapter) for name, (adapter, strength) in zip(names, rows, strict=True) if not strengths.row_of(strength, name).off]
        return brought(self._c, sorted((self._key(adapter), name, adapter) for name, adapter in on if adapter.embeddings))

    def _insert(self, image: int) -> None:
        self._c.words = dict(self._words[image].vectors) if self._words else {}

    def _text(self, image: int) -> dict[str, Recipe]:
        """What this image's stack makes of the text encoders' weights."""
        return {} if not self._rows else sharing.spoken(self._rows[image], self._placed, self._c.facts, lambda path: not self.is_quantised(path))

    def _whisper(self, image: int) -> bool:
        """The same beside quantised weights. Whether all numbers are finite."""
        recipes = {} if not self._rows else sharing.spoken(self._rows[image], self._placed, self._c.facts, self.is_quantised)
        return self._spoken.set(sharing.constant(recipes), 1, self._products)

    def _short(self, key: str, path: str) -> "Factors | None":
        """The layer as a short product, if it is one, in fp32 on the base's device; kept."""
        kept = self._factors.setdefault(key, {})
        if path not in kept:
            kept[path] = low_rank(self._placed[key][path])
        return kept[path]

    def _products(self, key: str, path: str) -> "Factors":
        return self._short(key, path) or whole(delta(self._placed[key][path], self._own(path)))

    def _adding(self, recipes: Mapping[str, Recipe]) -> Sums:
        """What adds the weighted sums of deltas to layers, in fp32."""
        return Sums(recipes, self._short, lambda key, path, own: delta(self._placed[key][path], own), self._c.device)

    def _own(self, path: str) -> "Tensor":
        """The base's weight in fp32."""
        if not self.is_quantised(path):
            return self._baked.own(path).to(self._weights[path].device).float()
        from peft.utils.integrations import dequantize_module_weight

        return dequantize_module_weight(self._modules[path]).float()

    def _place(self, path: str) -> "tuple[torch.device, torch.dtype]":
        if self.is_quantised(path):
            return self._c.device, self._c.dtype
        return self._weights[path].device, self._weights[path].dtype

    def _input(self, path: str) -> "tuple[Any, ...] | None":
        """A word for what the denoiser's layer sees, the same for all layers that see it; None where no other does."""
        inside = path.removeprefix(f"{self._c.facts.denoiser}.")
        found = ((pattern, re.fullmatch(pattern, inside)) for pattern in self._c.facts.one_input)
        return next(((pattern, *match.groups()) for pattern, match in found if match), None)

    def _shape(self, path: str) -> tuple[int, ...]:
        """Shape of the layer's weight as the base has it, however it is stored."""
        if self.is_quantised(path):
            module = self._modules[path]
            return module.out_features, module.in_features
        return tuple(self._weights[path].shape)

    def _forget(self, adapters: Sequence[Adapter]) -> None:
        """Let go of adapters that left the stack; of the last few the factors stay."""
        used = {row.name for rows in self._rows for row in rows}
        idle = [key for key in self._placed if key not in used]
        for key in used:
            self._placed[key] = self._placed.pop(key)  # to the end: the longest unused comes first
        for key in idle[: max(0, len(idle) - CACHED)]:
            del self._placed[key]
        self._reports = {key: found for key, found in self._reports.items() if key in self._placed}
        self._factors = {key: kept for key, kept in self._factors.items() if key in self._placed}
        here = {id(adapter) for adapter in adapters}
        self._keys = {number: known for number, known in self._keys.items() if number in here and known[1] in self._placed}
        self._arrived.clear()


def _names(rows: Rows) -> list[str]:
    return [adapter.metadata.get("ss_output_name") or f"number {i + 1}" for i, (adapter, _) in enumerate(rows)]


def _parameters(modules: Mapping[str, Any]) -> "dict[str, Parameter]":
    """Weights by the paths of their modules, and biases behind them; without weights that a module makes anew each time it is asked."""
    found = {}
    for path, module in modules.items():
        for name, place in (("weight", path), ("bias", f"{path}.bias")):
            parameter = module._parameters.get(name)
            if parameter is not None:
                found[place] = parameter
    return found


def _is_quantised(weight: "Tensor | None") -> bool:
    """Whether no sum can be written over the weight: there is none, or packed bits, or a tensor class of its own."""
    import torch

    return weight is None or not weight.is_floating_point() or weight.itemsize < 2 or type(weight.data) is not torch.Tensor
