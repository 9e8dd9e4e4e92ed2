"""The weighted sums that a stack adds to the base's layers: by short products where an adapter has them, whole otherwise."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from studio.generation.baked import Recipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Short = Callable[[str, str], "tuple[Tensor, Tensor] | None"]  # adapter's key, layer's path -> up (out, r), down (r, in * k * k) in fp32, or None
Whole = Callable[[str, str, "Tensor"], "Tensor"]  # adapter's key, layer's path, the base's own tensor in fp32 -> delta


class Sums:
    """Adds, for these recipes, the sum of weight * delta to layers in fp32. Every layer's product is one of its own.

    So the bits of a layer do not depend on what else is computed with it. What lies around the products is done for many layers at once.
    """

    def __init__(self, recipes: Mapping[str, Recipe], short: Short, whole: Whole, device: "torch.device"):
        import torch

        self._recipes, self._whole = recipes, whole
        self._shorts = {path: [short(key, path) for key, _ in recipe] for path, recipe in recipes.items()}
        self._kinds = {path: tuple(one[1].shape[0] if one else 0 for one in shorts) for path, shorts in self._shorts.items()}
        columns = {path: [w for n, (_, w) in zip(self._kinds[path], recipe, strict=True) for _ in range(n)] for path, recipe in recipes.items()}
        # All weights go to the device in one tensor.
        flat = torch.tensor([weight for row in columns.values() for weight in row], device=device)
        self._weights = dict(zip(columns, flat.split([len(row) for row in columns.values()]), strict=True))

    def kind(self, path: str) -> tuple[int, ...]:
        """The ranks of the layer's short products; 0 for an adapter that has none."""
        return self._kinds[path]

    def add(self, paths: Sequence[str], totals: "Tensor") -> None:
        """Add the sums of these layers, which are of one kind, to `totals` (n, out, ...), which hold the base's own tensors."""
        import torch

        own = totals.clone() if 0 in self._kinds[paths[0]] else totals
        ups, downs = [], []
        for place, rank in enumerate(self._kinds[paths[0]]):
            if rank:
                pairs = [self._shorts[path][place] for path in paths]
                ups.append(torch.stack([pair[0] for pair in pairs if pair]))
                downs.append(torch.stack([pair[1] for pair in pairs if pair]))
        if ups:
            up = torch.cat(ups, dim=2).mul_(torch.stack([self._weights[path] for path in paths])[:, None])
            down = torch.cat(downs, dim=1)
            for total, one, other in zip(totals.flatten(2).unbind(), up.unbind(), down.unbind(), strict=True):
                total.addmm_(one, other)
        for i, path in enumerate(paths):
            for rank, (key, weight) in zip(self._kinds[path], self._recipes[path], strict=True):
                if not rank:
                    totals[i].add_(self._whole(key, path, own[i]), alpha=weight)
