"""How the denoiser runs while pictures are drawn: as it is, or as a captured CUDA graph."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from studio.families.base import Components
from studio.generation import attention as kernels
from studio.generation.caching import FirstBlock
from studio.generation.graphs import Graphs

if TYPE_CHECKING:
    from studio.families.lean import Lean

Speed = Literal["auto", "eager", "graph"]
_WARM = "running"


@dataclass
class Runner:
    """The way a loaded denoiser runs, and what was found out about it; kept as long as the base stays loaded."""

    how: Literal["eager", "graph"] = "eager"
    reason: str = ""
    graphs: Graphs | None = None
    halves: dict[bool, Graphs] = field(default_factory=dict)  # of looks with the cache at work: short ones, and whole ones
    first_block: FirstBlock | None = None
    caching: bool = False  # whether it is at work
    lean: "Lean | None" = None  # what was made cheap on denoiser and VAE
    attention: dict[Any, kernels.Choice] = field(default_factory=dict)  # by the shapes the denoiser is called with

    @property
    def facts(self) -> dict[str, Any]:
        """What is told with a job."""
        refused = next((one.refused for one in self.all_graphs if one.refused), "") if self.how != "eager" else ""
        words = f"eager: {refused}" if refused else f"{self.how}: {self.reason}"
        fastest = [choice.order[0] for choice in self.attention.values() if choice.order]
        cached = {"first_block_cache": f"below {self.cache.threshold:g}"} if self.cache else {}
        return {"speed": words} | ({"attention": fastest[-1]} if fastest else {}) | cached

    @property
    def cache(self) -> FirstBlock | None:
        """First-block caching, while it is at work."""
        return self.first_block if self.caching else None

    @property
    def all_graphs(self) -> list[Graphs]:
        return [*([self.graphs] if self.graphs else []), *self.halves.values()]

    @property
    def looks(self) -> dict[str, Any]:
        """What is told at the end: how many looks were whole and how many short, where there were such."""
        return {"looks": {"whole": self.cache.whole, "short": self.cache.short}} if self.cache else {}


@contextlib.contextmanager
def running(c: Components, layout: Callable[[], str], speed: Speed, cache: float = 0.0) -> Iterator[Runner]:
    """Meanwhile every call of the denoiser goes the fastest way that `speed` allows.

    layout: see `Stack.layout`. cache: threshold of first-block caching; 0 is none.
    """
    import torch

    runner: Runner = c.warm.setdefault(_WARM, Runner())
    runner.how, runner.reason = choose(c, speed)
    _slim(c, runner)
    runner.caching = cache > 0
    if runner.caching:
        runner.first_block = runner.first_block or FirstBlock(c)
        runner.first_block.threshold = cache
    if runner.how == "eager" and runner.cache is None:
        yield runner
        return
    denoiser: Any = c.denoiser
    before, plain = vars(denoiser).get("forward"), denoiser.forward
    if runner.graphs is None and runner.how != "eager":
        runner.graphs = Graphs(plain)
        runner.halves = {short: Graphs(plain) for short in (False, True)}
    denoiser.forward = _forward(c, runner, plain, layout)
    current = torch.cuda.device(c.device) if c.device.type == "cuda" else contextlib.nullcontext()  # kernels of our own are started on the current one
    try:
        with current, runner.cache.used() if runner.cache else contextlib.nullcontext():
            yield runner
    finally:
        runner.caching = False
        del denoiser.forward  # the class's own is back, or what somebody else had put there
        if before is not None:
            denoiser.forward = before


def begin(c: Components) -> None:
    """A new denoising begins: what was cached of the one before says nothing of it."""
    runner: Runner | None = c.warm.get(_WARM)
    if runner is not None and runner.cache is not None:
        runner.cache.begin()


def _forward(c: Components, runner: Runner, plain: Callable[..., Any], layout: Callable[[], str]) -> Callable[..., Any]:
    """The denoiser's call, run as the runner says."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        key = tuple(tuple(value.shape) for value in (*args, *kwargs.values()) if hasattr(value, "shape"))
        if runner.how == "eager":
            assert runner.cache is not None
            return runner.cache.run(key, lambda short: plain(*args, **kwargs))
        if key not in runner.attention:
            # A look that is not used: its kernels round otherwise, and the first picture is to be what every later one is, bit for bit.
            with runner.cache.paused() if runner.cache else contextlib.nullcontext():
                _, shapes = kernels.seen(lambda: plain(*args, **kwargs))
            runner.attention[key] = kernels.fastest(shapes, c.device, c.dtype)
        with runner.attention[key].used():
            if runner.cache is not None:
                return runner.cache.run(key, lambda short: runner.halves[short].run(layout(), c.device, *args, **kwargs))
            assert runner.graphs is not None
            return runner.graphs.run(layout(), c.device, *args, **kwargs)

    return forward


def choose(c: Components, speed: Speed) -> tuple[Literal["eager", "graph"], str]:
    """The way to run, and why."""
    if speed == "eager":
        return "eager", "asked for"
    if c.device.type != "cuda":
        return "eager", f"graphs need an NVIDIA GPU, and this is {c.device.type}"
    if any(parameter.device.type != c.device.type for parameter in c.denoiser.parameters()):
        return "eager", "parts of the denoiser wait in main memory"
    return "graph", "asked for" if speed == "graph" else "a captured graph costs nothing and leaves no Python between kernels"


def release(c: Components) -> None:
    """Give back the memory of captured graphs, and the library's own ways to denoiser and VAE."""
    runner: Runner | None = c.warm.pop(_WARM, None)
    if runner is not None:
        for graphs in runner.all_graphs:
            graphs.clear()
        if runner.lean is not None:
            runner.lean.undo()


def _slim(c: Components, runner: Runner) -> None:
    """Make denoiser and VAE cheap to pass through where graphs run, as long as the base stays loaded; give them back where they are to run as they are."""
    if runner.how == "eager":
        if runner.lean is not None:
            runner.lean.undo()
            runner.lean = None
        return
    from studio.families import flux_lean, lean

    if runner.lean is None and lean.pays(c.device):
        runner.lean = lean.Lean()
        for model in (c.denoiser, c.parts.get("vae")):
            if model is not None:
                lean.convolutions(model, runner.lean)
                flux_lean.transformer(model, runner.lean)
