"""Which attention kernel is fastest here, found by trying those that the machine has on the shapes that the denoiser really uses."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Shape = tuple[tuple[int, ...], tuple[int, ...]]  # of query and of key, (B, heads, tokens, channels)
TRIED = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")
RUNS = 5


@dataclass(frozen=True)
class Choice:
    """Kernels in the order in which they are taken; none is what the library takes by itself."""

    order: tuple[str, ...] = ()
    milliseconds: Mapping[str, float] = field(default_factory=dict)  # all attention of one look, by kernel

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Attention runs on the chosen kernels meanwhile; where the first takes no input of a shape, on the next."""
        if not self.order:
            yield
            return
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel([getattr(SDPBackend, name) for name in self.order], set_priority=True):
            yield


def seen(call: Callable[[], Any]) -> tuple[Any, Counter[Shape]]:
    """The result of a call, and how often attention of each shape ran in it."""
    from torch.nn.functional import scaled_dot_product_attention
    from torch.overrides import TorchFunctionMode

    shapes: Counter[Shape] = Counter()

    class Watching(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is scaled_dot_product_attention and len(args) >= 2:
                shapes[tuple(args[0].shape), tuple(args[1].shape)] += 1
            return function(*args, **(kwargs or {}))

    with Watching():
        return call(), shapes


def fastest(shapes: Mapping[Shape, int], device: "torch.device", dtype: "torch.dtype") -> Choice:
    """The kernels by the time they need for these shapes; one that cannot run a shape comes after those that run all."""
    import torch

    if device.type != "cuda" or not shapes:
        return Choice()
    found: dict[str, tuple[int, float]] = {}
    for name in TRIED:
        times = [_milliseconds(name, shape, device, dtype) for shape in shapes]
        total = sum(time * count for time, count in zip(times, shapes.values(), strict=True) if time is not None)
        found[name] = (sum(time is None for time in times), total)
    torch.cuda.synchronize(device)
    order = [name for name in sorted(found, key=lambda name: found[name]) if found[name][0] < len(shapes)]
    return Choice((*order, "MATH"), {name: round(found[name][1], 3) for name in order if not found[name][0]})


def _milliseconds(name: str, shape: Shape, device: "torch.device", dtype: "torch.dtype") -> float | None:
    """Median of one call on the device; None if the kernel does not take it."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as attention

    query, key = (torch.randn(size, device=device, dtype=dtype) for size in shape)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(RUNS + 1)]
    try:
        with sdpa_kernel(getattr(SDPBackend, name)):
            attention(query, key, key)
            for mark in marks[:-1]:
                mark.record()
                attention(query, key, key)
            marks[-1].record()
    except RuntimeError:  # no kernel of this kind takes the shape, on this card
        return None
    torch.cuda.synchronize(device)
    return sorted(a.elapsed_time(b) for a, b in pairwise(marks))[RUNS // 2]
