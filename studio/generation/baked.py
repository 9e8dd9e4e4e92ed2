"""The baked part of a stack: weights computed anew from the base's own, in place, and put back bit for bit."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

SPARE_BYTES = 4 * 2**30  # left free on a GPU for activations before the base's own tensors move to main memory

AT_ONCE_BYTES = 2**28  # of layers in fp32 that are computed together

Recipe = tuple[tuple[str, float], ...]  # (adapter's key, weight), sorted


class Adding(Protocol):
    """What adds the weighted sums of deltas to layers."""

    def kind(self, path: str) -> tuple[int, ...]:
        """Layers of one shape and kind may be added to at once."""
        ...

    def add(self, paths: Sequence[str], totals: "Tensor") -> None:
        """Add the sums of these layers to `totals` (n, out, ...), which hold the base's own tensors in fp32."""
        ...


class Baked:
    """Writes round(W + sum of weight * delta) over W: in fp32, rounded once. Captured graphs stay right, since no tensor moves."""

    def __init__(self, weights: "Mapping[str, Parameter]"):
        self._weights = weights
        self._own: dict[str, Tensor] = {}  # path -> a copy of the base's tensor, for layers that are baked
        self._recipes: dict[str, Recipe] = {}  # path -> what its tensor is made of now

    def own(self, path: str) -> "Tensor":
        """The base's tensor, whatever stands in its place now."""
        return self._own.get(path, self._weights[path].data)

    def set(self, recipes: Mapping[str, Recipe], adding: Callable[[Mapping[str, Recipe]], Adding]) -> tuple[int, bool]:
        """Make exactly these layers baked; how many were computed, and whether all numbers are finite. Only what changed is computed.

        adding: gives what adds the sums of recipes.
        """
        import torch

        changed = [path for path in {**self._recipes, **recipes} if self._recipes.get(path) != recipes.get(path)]
        made = [path for path in changed if path in recipes]
        with torch.no_grad():
            spare = self._spare(changed)
            for path in changed:
                if path not in recipes:
                    self._restore(path)
            sums = adding({path: recipes[path] for path in made})
            for paths in self._alike(made, sums):
                held = [self._weights[path].data for path in paths]
                for path, weight in zip(paths, held, strict=True):
                    if path not in self._own:
                        self._own[path] = weight.clone() if spare else weight.to("cpu", copy=True)
                totals = torch.stack([self._own[path].to(held[0].device) for path in paths]).float()
                sums.add(paths, totals)
                torch._foreach_copy_(held, list(totals.unbind()))
                self._recipes |= {path: recipes[path] for path in paths}
            return len(changed), finite([self._weights[path].data for path in made])

    def _alike(self, paths: Sequence[str], sums: Adding) -> Iterator[list[str]]:
        """The layers in groups of one shape, place and kind, as many at once as there is room for."""
        groups: dict[Any, list[str]] = {}
        for path in paths:
            weight = self._weights[path]
            groups.setdefault((weight.shape, weight.dtype, weight.device, sums.kind(path)), []).append(path)
        for (shape, *_), same in groups.items():
            n = max(1, AT_ONCE_BYTES // (4 * math.prod(shape)))
            yield from (same[begin : begin + n] for begin in range(0, len(same), n))

    def clear(self) -> None:
        """Put every tensor of the base back."""
        import torch

        with torch.no_grad():
            for path in list(self._own):
                self._restore(path)

    def _restore(self, path: str) -> None:
        self._weights[path].data.copy_(self._own[path])
        del self._own[path]  # only now: an interrupt before it leaves a copy to restore from
        self._recipes.pop(path, None)

    def _spare(self, paths: list[str]) -> bool:
        """Whether the device has room for the base's own tensors beside the baked ones."""
        import torch

        fresh = [self._weights[path] for path in paths if path not in self._own]
        devices = {weight.device for weight in fresh if weight.device.type == "cuda"}
        needed = sum(weight.numel() * weight.element_size() for weight in fresh)
        return all(torch.cuda.mem_get_info(device)[0] > needed + SPARE_BYTES for device in devices)


def finite(tensors: "Sequence[Tensor]") -> bool:
    """Whether no number of any tensor is infinite or none at all; one wait for the device, whatever their number."""
    import torch

    if not tensors:
        return True
    largest = torch._foreach_norm(list(tensors), float("inf"))
    places = {(one.device, one.dtype) for one in largest}
    sums = [torch.stack([one for one in largest if (one.device, one.dtype) == place]).isfinite().all() for place in places]
    return all(map(bool, sums))
