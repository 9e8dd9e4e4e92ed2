"""A module's calls as CUDA graphs: the first looks run as they are, later ones of the same shapes are replayed without Python in between."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LOOKS = 1  # that runs eagerly before a graph is captured: it brings every kernel and workspace into being
KEPT = 4  # graphs of other shapes or stacks that stay


@dataclass
class _Captured:
    """A graph with the tensors that it reads and writes."""

    graph: Any
    inputs: "list[Tensor]"
    output: Any

    def replay(self, inputs: "list[Tensor]") -> Any:
        from torch.utils import _pytree as pytree

        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        self.graph.replay()
        return pytree.tree_map_only(_tensor(), lambda tensor: tensor.clone(), self.output)


class Graphs:
    """Graphs of one callable, by what it is called with and by the layout of the numbers it reads."""

    def __init__(self, call: Callable[..., Any]):
        self._call = call
        self._looks: dict[Any, int] = {}
        self._captured: OrderedDict[Any, _Captured] = OrderedDict()
        self._pool: Any = None
        self.refused = ""  # why nothing more is captured

    def __len__(self) -> int:
        return len(self._captured)

    def run(self, layout: str, device: Any, *args: Any, **kwargs: Any) -> Any:
        """What the callable returns. layout: another one means that tensors lie elsewhere; its graphs are let go."""
        from torch.utils import _pytree as pytree

        if self.refused:
            return self._call(*args, **kwargs)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, _tensor())]
        rest = tuple(None if isinstance(leaf, _tensor()) else leaf for leaf in leaves)
        key = (layout, str(spec), rest, tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors))
        if key not in self._captured:
            self._looks[key] = self._looks.get(key, 0) + 1
            if self._looks[key] <= LOOKS:
                return self._call(*args, **kwargs)
            self._forget(layout)
            captured = self._capture(leaves, spec, device)
            if captured is None:
                return self._call(*args, **kwargs)
            self._captured[key] = captured
        self._captured.move_to_end(key)
        return self._captured[key].replay(tensors)

    def clear(self) -> None:
        """Let every graph and its memory go."""
        self._captured.clear()
        self._looks.clear()
        self._pool = None

    def _forget(self, layout: str) -> None:
        """Graphs of stacks that are gone, and the longest unused. Those without a side path stay right for ever."""
        for key in [key for key in self._captured if key[0] not in ("", layout)]:
            del self._captured[key]
        while len(self._captured) >= KEPT:
            self._captured.popitem(last=False)
        self._looks = {key: looks for key, looks in self._looks.items() if key[0] in ("", layout)}

    def _capture(self, leaves: list[Any], spec: Any, device: Any) -> _Captured | None:
        import torch
        from torch.utils import _pytree as pytree

        own = [leaf.to(device, copy=True) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(own, spec)
        try:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = self._call(*args, **kwargs)
        except RuntimeError as error:  # out of memory, or a kernel that cannot be captured
            self.clear()
            if torch.cuda.is_available():
                torch.cuda.synchronize(device)
                torch.cuda.empty_cache()
            self.refused = f"it cannot be captured ({str(error).splitlines()[0][:120]})"
            return None
        return _Captured(graph, [leaf for leaf in own if isinstance(leaf, torch.Tensor)], output)


def _tensor() -> type:
    import torch

    return torch.Tensor
