"""Several LoRAs on one base at once, without ever changing what the base is.

The base's own tensors are kept as they are; a layer under the stack gets a new one, round(W + sum of weight * delta), computed in
fp32 and rounded once. Taking the stack away puts the old tensor back, so the base is the same bit for bit.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.errors import FormatError
from studio.families import FAMILIES
from studio.families.base import Components
from studio.lora.adapter import Adapter, Layer, LowRank, delta, facts, moved, tensors
from studio.lora.attach import parameter_map
from studio.lora.formats import LoadReport, report

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

SPARE_BYTES = 4 * 2**30  # left free on a GPU for activations before the base's own tensors move to main memory
CACHED = 4  # adapters whose factors stay on the device after they left the stack


@dataclass(frozen=True)
class StackReport:
    """How each row fits the base, in the order given; None for a row of weight 0."""

    rows: tuple[LoadReport | None, ...]
    names: tuple[str, ...]
    baked: int = 0  # layers that were computed anew

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each row that fits in part."""
        found = []
        for name, row in zip(self.names, self.rows, strict=True):
            if row and (row.missing or row.mismatched):
                wrong = [*row.missing, *row.mismatched]
                found.append(f"LoRA {name}: {len(wrong)} of {len(wrong) + len(row.matched)} layers do not fit this base and are left out, first {wrong[0]}")
        return tuple(found)


_Recipe = tuple[tuple[str, float], ...]  # (adapter's key, weight), sorted by key
_Factors = tuple[Any, ...]  # on the base's device in fp32: (up scaled by alpha / rank, down), or (layer,)


class Stack:
    """The adapters on one loaded base. `set` may be called any number of times; `clear` gives the base back."""

    def __init__(self, c: Components):
        self._c = c
        self._weights: dict[str, Parameter] = parameter_map(c)
        self._own: dict[str, Tensor] = {}  # module path -> the base's tensor, for layers under the stack
        self._recipes: dict[str, _Recipe] = {}  # module path -> what its tensor is made of now
        self._applied: _Recipe = ()
        self._placed: dict[str, dict[str, Layer | _Factors]] = {}  # adapter's key -> its matching layers, factors once they were baked
        self._keys: dict[int, tuple[Adapter, str]] = {}

    def set(self, rows: Sequence[tuple[Adapter, float]], names: Sequence[str] = ()) -> StackReport:
        """Make the stack exactly these adapters at these weights; weight 0 is the same as leaving the row out.

        The order of rows makes no difference to any bit. Only layers whose sum changes are computed. Raises FormatError if an
        adapter fits nowhere or makes a weight infinite; the base is then as if there were no stack.
        """
        names = tuple(names) or tuple(adapter.metadata.get("ss_output_name") or f"number {i + 1}" for i, (adapter, _) in enumerate(rows))
        try:
            reports = tuple(self._fit(adapter, name) if weight else None for (adapter, weight), name in zip(rows, names, strict=True))
            self._applied = self._recipe(rows)
            recipes = self._by_layer()
            changed = [path for path in {**self._recipes, **recipes} if self._recipes.get(path) != recipes.get(path)]
            self._bake(changed, recipes, names)
        except BaseException:
            self.clear()
            self._forget([])
            raise
        self._forget([adapter for adapter, _ in rows])
        return StackReport(reports, names, len(changed))

    def clear(self) -> None:
        """Put every tensor of the base back."""
        for path in list(self._own):
            self._restore(path)
        self._recipes, self._applied = {}, ()

    def fingerprint(self, parts: Sequence[str] = ()) -> str:
        """A word for what the stack does to the base, or to some of its parts; empty if nothing."""
        made = self._applied
        if parts:
            prefixes = tuple(f"{part}." for part in parts)
            made = tuple(row for row in made if any(path.startswith(prefixes) for path in self._placed[row[0]]))
        return hashlib.sha256(repr(made).encode()).hexdigest()[:16] if made else ""

    def _fit(self, adapter: Adapter, name: str) -> LoadReport:
        """Check an adapter against the base and keep its matching layers."""
        own = self._c.facts
        if adapter.family != own.name:
            other = FAMILIES[adapter.family].facts.title if adapter.family in FAMILIES else adapter.family
            raise FormatError(f"LoRA {name} is for {other}, the base {self._c.base.name} is {own.title}; choose a LoRA or a base of the same family")
        found = report(adapter, {path: tuple(weight.shape) for path, weight in self._weights.items()})
        if not found.matched:
            first = next(iter([*found.missing, *found.mismatched]), "it has none")
            raise FormatError(
                f"LoRA {name} ({own.title}) has no layer that fits the base {self._c.base.name} ({own.title}): {first}; choose the base it was trained on"
            )
        self._placed.setdefault(self._key(adapter), {path: adapter.layers[path] for path in found.matched})
        return found

    def _key(self, adapter: Adapter) -> str:
        """A name for the adapter's numbers, the same for equal numbers wherever they were read from."""
        known = self._keys.get(id(adapter))
        if known is None:
            known = self._keys[id(adapter)] = (adapter, _digest(adapter))
        return known[1]

    def _recipe(self, rows: Sequence[tuple[Adapter, float]]) -> _Recipe:
        weights: dict[str, list[float]] = {}
        for adapter, weight in rows:
            if weight:
                weights.setdefault(self._key(adapter), []).append(weight)
        summed = ((key, math.fsum(values)) for key, values in sorted(weights.items()))
        return tuple((key, weight) for key, weight in summed if weight)

    def _by_layer(self) -> dict[str, _Recipe]:
        found: dict[str, list[tuple[str, float]]] = {}
        for key, weight in self._applied:
            for path in self._placed[key]:
                found.setdefault(path, []).append((key, weight))
        return {path: tuple(rows) for path, rows in found.items()}

    def _bake(self, changed: Sequence[str], recipes: dict[str, _Recipe], names: Sequence[str]) -> None:
        import torch

        finite = torch.ones((), dtype=torch.bool, device=self._c.device)
        with torch.no_grad():
            spare = self._spare(changed)
            for path in changed:
                if path not in recipes:
                    self._restore(path)
                    continue
                held = self._weights[path]
                own = self._own.get(path)
                if own is None:
                    own = held.data
                total = own.to(held.device, torch.float32, copy=True)
                for key, weight in recipes[path]:
                    self._add(total, own, self._factors(key, path, total), weight)
                baked = total.to(own.dtype)
                finite &= torch.isfinite(baked).all().to(finite.device)
                self._own[path] = own if spare else own.to("cpu")
                held.data = baked
                self._recipes[path] = recipes[path]
        if not bool(finite):
            raise FormatError(f"LoRA {', '.join(names)}: these weights make numbers beyond {self._c.dtype}; lower the weights, or the file is broken")

    def _factors(self, key: str, path: str, like: "Tensor") -> _Factors:
        factors = self._placed[key][path]
        if not isinstance(factors, tuple):
            layer = factors
            if isinstance(layer, LowRank):
                factors = (layer.up.to(like).flatten(1) * (layer.alpha / layer.rank), layer.down.to(like).flatten(1))
            else:
                factors = (moved(layer, like),)
            self._placed[key][path] = factors
        return factors

    @staticmethod
    def _add(total: "Tensor", own: "Tensor", factors: _Factors, weight: float) -> None:
        """total += weight * delta, in fp32; own: the base's tensor, which some deltas depend on."""
        if len(factors) == 2:
            total.view(total.shape[0], -1).addmm_(*factors, alpha=weight)
        else:
            total.add_(delta(factors[0], own.to(total)), alpha=weight)

    def _restore(self, path: str) -> None:
        own = self._own.pop(path)
        held = self._weights[path]
        held.data = own.to(held.device)
        self._recipes.pop(path, None)

    def _spare(self, paths: Sequence[str]) -> bool:
        """Whether the device has room for the base's own tensors beside the baked ones."""
        import torch

        if self._c.device.type != "cuda":
            return True
        fresh = [self._weights[path] for path in paths if path not in self._own]
        needed = sum(weight.numel() * weight.element_size() for weight in fresh)
        return torch.cuda.mem_get_info(self._c.device)[0] > needed + SPARE_BYTES

    def _forget(self, adapters: Sequence[Adapter]) -> None:
        """Let go of adapters that left the stack; of the last few the factors stay."""
        used = {key for key, _ in self._applied}
        idle = [key for key in self._placed if key not in used]
        for key in used:
            self._placed[key] = self._placed.pop(key)  # to the end: the longest unused comes first
        for key in idle[: max(0, len(idle) - CACHED)]:
            del self._placed[key]
        here = {id(adapter) for adapter in adapters}
        self._keys = {number: known for number, known in self._keys.items() if number in here}


def _digest(adapter: Adapter) -> str:
    import torch

    digest = hashlib.sha256(adapter.family.encode())
    for path in sorted(adapter.layers):
        layer = adapter.layers[path]
        values = tensors(layer)
        digest.update(f"{path} {facts(layer)} {[tuple(value.shape) for value in values]} {[str(value.dtype) for value in values]}".encode())
        for value in values:
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
