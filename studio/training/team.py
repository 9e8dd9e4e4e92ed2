"""Processes that train one LoRA together: each takes its share of every batch, gradients are summed, all take the same step.

Nothing is wrapped: the shares of one batch may differ in size, or be empty, and still every picture weighs the same as in one
process. Draws are keyed by batch and item, so it does not matter which process makes them.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from studio.errors import RunError

if TYPE_CHECKING:
    from studio.training.loop import Requests

T = TypeVar("T")
PATIENCE = datetime.timedelta(days=2)  # for encoding or drawing on the first process; whoever started them ends them when one dies
WISHES = ("cancel", "sample", "keep", "finish", "leave")


class Bereaved(RunError):
    """Another process of the team is gone."""


@dataclass(frozen=True)
class Team:
    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes checkpoints, draws previews and is listened to."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of a batch."""
        return items[self.rank :: self.size]

    def sum(self, loss: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Give all weights the sum of all processes' gradients; the sum of their losses."""
        if self.size == 1:
            return loss
        reached = torch.tensor([p.grad is not None for p in weights], dtype=torch.float32, device=loss.device)
        flat = torch.cat([loss.float().reshape(1), reached, *((torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in weights)])
        total = self._reduced(flat)
        at = 1 + len(weights)
        for p, got in zip(weights, total[1:at].tolist(), strict=True):
            p.grad = total[at : at + p.numel()].view_as(p) if got else None
            at += p.numel()
        return total[0]

    def hear(self, requests: "Requests", device: torch.device) -> "Requests":
        """The first process's requests, told to all at the same step; from when all have come so far."""
        if self.size == 1:
            return requests
        self._reduced(torch.zeros(1, device=device))
        return _Heard(self, requests, device)

    def _reduced(self, tensor: Tensor) -> Tensor:
        from accelerate.utils import reduce

        try:
            total = reduce(tensor, "sum")
        except RuntimeError as error:
            raise Bereaved("another process of this training is gone") from error
        assert isinstance(total, Tensor)
        return total


@dataclass(frozen=True)
class _Heard:
    team: Team
    requests: "Requests"
    device: torch.device

    def pending(self) -> set[str]:
        asked = self.requests.pending() if self.team.main else set[str]()
        told = self.team._reduced(torch.tensor([float(wish in asked) for wish in WISHES], device=self.device))
        return {wish for wish, value in zip(WISHES, told.tolist(), strict=True) if value}


_team = Team()


def current() -> Team:
    """The team of this process: itself alone unless it joined one."""
    return _team


def join(device: str) -> Team:
    """Meet the processes that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT tell of, as `accelerate launch` and torchrun set them."""
    from accelerate import PartialState

    global _team
    where = torch.device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    state = PartialState(cpu=where.type == "cpu", timeout=PATIENCE)
    _team = Team(state.process_index, state.num_processes)
    return _team
