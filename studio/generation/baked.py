"""The baked part of a stack: weights computed anew from the base's own, in place, and put back bit for bit."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

SPARE_BYTES = 4 * 2**30  # left free on a GPU for activations before the base's own tensors move to main memory

Recipe = tuple[tuple[str, float], ...]  # (adapter's key, weight), sorted
Add = Callable[[str, "Tensor", "Tensor"], None]  # path, total in fp32 to add the layer's sum to, the base's own tensor


class Baked:
    """Writes round(W + sum of weight * delta) over W: in fp32, rounded once. Captured graphs stay right, since no tensor moves."""

    def __init__(self, weights: "Mapping[str, Parameter]"):
        self._weights = weights
        self._own: dict[str, Tensor] = {}  # path -> a copy of the base's tensor, for layers that are baked
        self._recipes: dict[str, Recipe] = {}  # path -> what its tensor is made of now

    def own(self, path: str) -> "Tensor":
        """The base's tensor, whatever stands in its place now."""
        return self._own.get(path, self._weights[path].data)

    def set(self, recipes: Mapping[str, Recipe], adding: Callable[[Mapping[str, Recipe]], Add]) -> tuple[int, bool]:
        """Make exactly these layers baked; how many were computed, and whether all numbers are finite. Only what changed is computed.

        adding: gives what adds the sums of recipes.
        """
        import torch

        changed = [path for path in {**self._recipes, **recipes} if self._recipes.get(path) != recipes.get(path)]
        made = [path for path in changed if path in recipes]
        with torch.no_grad():
            spare = self._spare(changed)
            add = adding({path: recipes[path] for path in made})
            for path in changed:
                if path not in recipes:
                    self._restore(path)
                    continue
                held = self._weights[path].data
                if path not in self._own:
                    self._own[path] = held.clone() if spare else held.to("cpu", copy=True)
                total = self._own[path].to(held.device, torch.float32, copy=True)
                add(path, total, self._own[path])
                held.copy_(total)
                self._recipes[path] = recipes[path]
            return len(changed), finite([self._weights[path].data for path in made])

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
    return bool(torch.stack([one.float().to(largest[0].device) for one in largest]).isfinite().all())
