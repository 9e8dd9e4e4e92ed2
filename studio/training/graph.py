"""Whole optimizer steps on the device: recorded once per shape of batch in a CUDA graph, then replayed, without the host waiting for any of it.

Two kinds of graphs share one pool of memory: a batch's forward and backward pass with the gathering of its gradients, one for each shape,
and the update (norm, clipping, optimizer, rounding), one for all. Batches and learning rates are copied in before a replay; loss and norm
are copied out after it and read when they have come. A step whose loss or gradient is not finite leaves weights and optimizer alone.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from studio.data.cache import release
from studio.errors import RunError
from studio.families.offload import Ring
from studio.training import optim
from studio.training.lean import recompute
from studio.training.objective import Objective
from studio.training.step import Micro, Outcome, Stepper

SHARES = (0.5, 1.0)  # of the blocks whose activations are recomputed, one after the other where memory asks for it
WARM_UP = 2  # passes before recording: libraries choose their kernels and blocks are compiled in them
# Shares by which a replay may differ from the pass before recording, which may take other kernels. Rounding adds up in a gradient on its way back
# through many blocks: 2.2 % was seen on SDXL with random weights in bf16, whose losses were equal. What was recorded wrongly is far off in both.
ALIKE, ALIKE_GRADIENT = 0.02, 0.1


@dataclass(frozen=True)
class Late:
    """What a step came to, once the device has got there."""

    figures: Tensor  # loss, norm of the gradient, whether the step was skipped; on the host
    event: Any

    def outcome(self) -> Outcome:
        """Waits for it."""
        if self.event is not None:
            self.event.synchronize()
        loss, norm, bad = self.figures.tolist()
        return Outcome(loss, norm, not bad)


@dataclass(frozen=True)
class Recorded:
    """The passes over batches of one shape; `inputs` are copied into before a replay."""

    graph: Any
    inputs: dict[str, Tensor]


class Engine:
    """Takes the steps of a Stepper whose adapter is fused. With `record` off it computes the same without graphs, on any device.

    spared: share of the blocks whose activations are recomputed; where memory runs out while a step is recorded it is raised, and the step
    recorded anew. At 1 nothing more can be spared.
    ring: brings blocks of the base that wait in main memory; a recorded step brings them itself.
    """

    def __init__(self, stepper: Stepper, *, record: bool = True, spared: float = 1.0, ring: Ring | None = None):
        self.stepper, self.weights, self.optimizer = stepper, stepper.weights, stepper.optimizer
        stepper.objective = _placed(stepper.objective, stepper.components.device)
        self.max_norm, self.device = stepper.max_norm, stepper.components.device
        self.record, self.trouble, self.ring = record, "", ring
        self.shares = [share for share in SHARES if share > spared]
        self.notes: list[str] = []
        self.total, self.figures = torch.zeros((), device=self.device), torch.zeros(3, device=self.device)
        self.pictures = torch.ones((), device=self.device)
        self.recorded: dict[Any, Recorded] = {}
        self.update_graph: Any = None
        self.pool = torch.cuda.graph_pool_handle() if record else None
        # The kernel reads the rate in fp32 on a GPU; a CPU takes it as the fp64 number that it is.
        wide = torch.float32 if self.device.type == "cuda" else torch.float64
        self.rates = [torch.zeros((), dtype=wide, device=self.device) for _ in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["capturable"] = record
        self.optimizer.defaults["capturable"] = record  # nothing of the run depends on it, so no checkpoint is to hold it

    def accumulate(self, micros: Iterable[Micro], pictures: int) -> Tensor:
        """Forward and backward passes of all micro-batches; their mean loss, which is there once the device has got to it."""
        if self.record and self.update_graph is None:
            self._rated()
            self._record_update()  # before the passes, which make do with the memory that the optimizer leaves
        self.pictures.fill_(pictures)
        for micro in micros:
            recorded = self._recorded(micro) if self.record else None
            if recorded is None:
                self._gathered(micro)
                continue
            for name, tensor in tensors(micro).items():
                recorded.inputs[name].copy_(tensor, non_blocking=True)
            if self.ring:
                self.ring.rest()
            recorded.graph.replay()
        return self.total

    def update(self, learning_rate: float) -> Late:
        """Clip and apply what was accumulated, unless it is not finite; waits for nothing."""
        optim.set_rate(self.optimizer, learning_rate)
        self._rated()
        if self.update_graph is not None:
            self.update_graph.replay()
        else:
            self._apply()
        if self.device.type != "cuda":
            return Late(self.figures.clone(), None)
        figures = torch.empty(3, pin_memory=True)
        figures.copy_(self.figures, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return Late(figures, event)

    def forget(self) -> None:
        """Give up what was recorded and gathered, with its memory; it is recorded anew when it is needed."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.recorded.clear()
        self.update_graph = None
        self.weights.clear()
        self.total.zero_()
        release(self.device)  # what passes were recorded in serves nothing else

    def _pass(self, micro: Micro) -> Tensor:
        loss = self.stepper._losses(micro).sum() / self.pictures
        loss.backward()
        return loss.detach()

    def _gathered(self, micro: Micro) -> None:
        loss = self._pass(micro)
        self.weights.gather()
        self.total.add_(loss)

    @torch.no_grad()
    def _apply(self) -> None:
        gradients = self.weights.gradients()
        norm = nn.utils.get_total_norm(gradients)
        if self.max_norm > 0:
            torch._foreach_mul_(gradients, (self.max_norm / (norm + 1e-6)).clamp(max=1.0))
        bad = ~(self.total.isfinite() & norm.isfinite())
        self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # the fused kernel then leaves weights, moments and count alone
        self.optimizer.step()
        self.weights.publish()
        self.figures.copy_(torch.stack([self.total, norm, bad.float()]))
        torch._foreach_zero_(gradients)
        self.total.zero_()

    def _recorded(self, micro: Micro) -> Recorded | None:
        """The recorded passes for a batch of this shape; None, for good, if they cannot be recorded."""
        given = tensors(micro)
        key = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in given.items())
        if key not in self.recorded:
            inputs = {name: tensor.clone() for name, tensor in given.items()}
            still = filled(micro, inputs)
            graph, trouble = None, None
            try:
                graph = self._proven(still)
            except (RuntimeError, RunError) as error:
                trouble = error.with_traceback(None)  # the frames hold what was recorded, and with it memory that is wanted now
            if trouble is not None:
                if isinstance(trouble, torch.OutOfMemoryError) and self.shares:
                    self._spare()
                    return self._recorded(micro)
                self._give_up(trouble)
                return None
            self.recorded[key] = Recorded(graph, inputs)
        return self.recorded[key]

    def _spare(self) -> None:
        """Recompute activations of a larger share of the blocks from here on."""
        self._drop()
        share = self.shares.pop(0)
        torch.cuda.synchronize(self.device)
        release(self.device)
        recompute(self.stepper.components.denoiser, share)
        self.notes.append(f"memory ran out while the step was recorded: activations of {share:.0%} of the blocks are recomputed, which changes no result")

    def told(self) -> list[str]:
        """What there is to say since the last time."""
        found, self.notes = self.notes, []
        return found

    def _proven(self, micro: Micro) -> Any:
        """The recorded passes over this batch. Raises RunError unless a replay gives what the last pass before recording gave.

        What was gathered of the step so far is kept aside meanwhile.
        """
        gathered, total = [gradient.clone() for gradient in self.weights.gradients()], self.total.clone()
        seen: list[Tensor] = []

        def alone() -> None:
            self._blank()
            self._gathered(micro)
            seen.append(self._gist())

        try:
            graph = self._capture(lambda: self._gathered(micro), alone)
            self._blank()
            graph.replay()
            (loss, norm), (again, norm_again) = seen[-1].tolist(), self._gist().tolist()
        finally:
            torch._foreach_copy_(self.weights.gradients(), gathered)
            self.total.copy_(total)
        if not (_alike(loss, again, ALIKE) and _alike(norm, norm_again, ALIKE_GRADIENT)):
            raise RunError(f"replayed, it gives loss {again:.4g} and gradient {norm_again:.4g} instead of {loss:.4g} and {norm:.4g}")
        return graph

    def _rated(self) -> None:
        """Keep the rates of the optimizer's groups where what is recorded finds them."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            rate.fill_(group["lr"])
            group["lr"] = rate

    def _blank(self) -> None:
        torch._foreach_zero_(self.weights.gradients())
        self.total.zero_()

    def _gist(self) -> Tensor:
        """Loss and norm of the gradient of what is gathered."""
        return torch.stack([self.total, nn.utils.get_total_norm(self.weights.gradients())])

    def _drop(self) -> None:
        assert self.weights.fused is not None
        self.weights.fused.drop()

    def _record_update(self) -> None:
        """Record the update. Its warm-up runs with a loss that is not finite and so changes nothing; what was gathered is kept aside."""
        gathered, total = [gradient.clone() for gradient in self.weights.gradients()], self.total.clone()

        def harmless() -> None:
            self.total.fill_(torch.inf)
            self._apply()

        try:
            self.update_graph = self._capture(self._apply, harmless)
        except RuntimeError as error:
            self._give_up(error)
        torch._foreach_copy_(self.weights.gradients(), gathered)
        self.total.copy_(total)

    def _capture(self, act: Callable[[], None], warm: Callable[[], None]) -> Any:
        beside = _beside(self.device)
        beside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                warm()
        torch.cuda.current_stream(self.device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        if self.ring:
            self.ring.rest()
        with torch.cuda.graph(graph, pool=self.pool, stream=beside), self.ring.recorded() if self.ring else nullcontext():
            act()
        return graph

    def _give_up(self, error: Exception) -> None:
        """Go on without recording, and remember why."""
        self._drop()
        self.record, self.trouble = False, " ".join(str(error).split())[:200]
        if isinstance(error, torch.OutOfMemoryError):
            self.trouble = "memory ran out while the step was recorded"
        self.notes.append(f"the step cannot be recorded and runs one operation after another: {self.trouble}")
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()


@cache
def _beside(device: torch.device) -> Any:
    """The stream on which passes are warmed up and recorded: one for all runs of a process, as matrix products keep a workspace for every stream."""
    return torch.cuda.Stream(device)


def _alike(one: float, other: float, share: float) -> bool:
    """Whether they differ by at most that share of the first; two that are not finite are alike."""
    return abs(one - other) <= share * abs(one) if math.isfinite(one) else not math.isfinite(other)


def _placed(objective: Objective, device: torch.device) -> Objective:
    """The objective with its tables on the device: a recorded step cannot fetch them from the CPU."""
    if not is_dataclass(objective) or isinstance(objective, type):
        return objective
    tables = {field.name: getattr(objective, field.name) for field in fields(objective)}
    return replace(objective, **{name: table.to(device) for name, table in tables.items() if isinstance(table, Tensor)})


def tensors(value: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors of a micro-batch by their places in it."""
    return dict(_walk(value, name))


def _walk(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _walk(inner, f"{name}.{key}")
    elif is_dataclass(value):
        for field in fields(value):
            yield from _walk(getattr(value, field.name), f"{name}.{field.name}")


def filled(value: Any, given: Mapping[str, Tensor], name: str = "") -> Any:
    """The same micro-batch with other tensors in its places."""
    if isinstance(value, Tensor):
        return given[name]
    if isinstance(value, Mapping):
        return {key: filled(inner, given, f"{name}.{key}") for key, inner in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: filled(getattr(value, field.name), given, f"{name}.{field.name}") for field in fields(value)})
    return value
