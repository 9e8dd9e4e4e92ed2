"""How the denoiser runs while pictures are drawn: as it is, as a captured CUDA graph, or compiled and captured."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from studio.families.base import Components
from studio.generation import attention as kernels
from studio.generation.graphs import Graphs

Speed = Literal["auto", "eager", "graph", "compile"]
RECOMPILES = 64  # one kind of block comes in that many shapes and more
_WARM = "running"


@dataclass
class Runner:
    """The way a loaded denoiser runs, and what was found out about it; kept as long as the base stays loaded."""

    how: Literal["eager", "graph", "compile"] = "eager"
    reason: str = ""
    graphs: Graphs | None = None
    compiled: bool = False
    attention: dict[Any, kernels.Choice] = field(default_factory=dict)  # by the shapes the denoiser is called with

    @property
    def facts(self) -> dict[str, Any]:
        """What is told with a job."""
        refused = self.graphs.refused if self.graphs and self.how != "eager" else ""
        words = f"eager: {refused}" if refused else f"{self.how}: {self.reason}"
        fastest = [choice.order[0] for choice in self.attention.values() if choice.order]
        return {"speed": words} | ({"attention": fastest[-1]} if fastest else {})


@contextlib.contextmanager
def running(c: Components, layout: Callable[[], str], speed: Speed) -> Iterator[Runner]:
    """Meanwhile every call of the denoiser goes the fastest way that `speed` allows. layout: see `Stack.layout`."""
    runner: Runner = c.warm.setdefault(_WARM, Runner())
    runner.how, runner.reason = choose(c, speed)
    _compile(c, runner)
    if runner.how == "eager":
        yield runner
        return
    import torch

    denoiser: Any = c.denoiser
    before, plain = vars(denoiser).get("forward"), denoiser.forward
    if runner.graphs is None:
        runner.graphs = Graphs(plain)

    def forward(*args: Any, **kwargs: Any) -> Any:
        assert runner.graphs is not None
        key = tuple(tuple(value.shape) for value in (*args, *kwargs.values()) if hasattr(value, "shape"))
        if key not in runner.attention:
            with torch.compiler.set_stance("force_eager"):
                _, shapes = kernels.seen(lambda: plain(*args, **kwargs))
            # That look is not used: its kernels round otherwise, and the first picture is to be what every later one is, bit for bit.
            runner.attention[key] = kernels.fastest(shapes, c.device, c.dtype)
        with runner.attention[key].used():
            try:
                return runner.graphs.run(layout(), c.device, *args, **kwargs)
            except RuntimeError as error:
                if not runner.compiled:
                    raise
                runner.how, runner.reason = "graph", f"its blocks cannot be compiled here ({str(error).splitlines()[0][:120]})"
                _compile(c, runner)
                return runner.graphs.run(layout(), c.device, *args, **kwargs)

    denoiser.forward = forward
    try:
        yield runner
    finally:
        del denoiser.forward  # the class's own is back, or what somebody else had put there
        if before is not None:
            denoiser.forward = before


def choose(c: Components, speed: Speed) -> tuple[Literal["eager", "graph", "compile"], str]:
    """The way to run, and why."""
    if speed == "eager":
        return "eager", "asked for"
    if c.device.type != "cuda":
        return "eager", f"graphs and compiled kernels need an NVIDIA GPU, and this is {c.device.type}"
    if any(parameter.device.type != c.device.type for parameter in c.denoiser.parameters()):
        return "eager", "parts of the denoiser wait in main memory"
    if speed == "compile":
        return "compile", "asked for"
    return "graph", "asked for" if speed == "graph" else "a captured graph costs nothing and leaves no Python between kernels"


def release(c: Components) -> None:
    """Give back the memory of captured graphs, and compiled kernels with them."""
    runner: Runner | None = c.warm.pop(_WARM, None)
    if runner is not None:
        runner.how = "eager"
        if runner.graphs:
            runner.graphs.clear()
        _compile(c, runner)


def _compile(c: Components, runner: Runner) -> None:
    """Compile the blocks that repeat, or take their compiled form away, as `runner.how` says. Kernels are made at the first look."""
    import torch

    wanted = runner.how == "compile"
    if wanted == runner.compiled:
        return
    if runner.graphs:
        runner.graphs.clear()
    for block in _blocks(c):
        if wanted:
            block.compile(dynamic=False)
        else:
            block._compiled_call_impl = None
    if wanted:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILES)  # type: ignore[attr-defined]
    runner.compiled = wanted


def _blocks(c: Components) -> "Iterator[Any]":
    """The kinds of blocks that a denoiser is made of, many of each: compiled once a shape, used often."""
    kinds = {*(getattr(c.denoiser, "_repeated_blocks", None) or ()), "ResnetBlock2D"}
    return (module for module in c.denoiser.modules() if type(module).__name__ in kinds)
