"""What a checkpoint carries beside the adapter, part by part.

A part has a name, tensors and entries. Its tensors become `NAME.safetensors` in the checkpoint, its entries go into
`state.json` under its name. To let a run carry one more thing, write a class of this shape and name it in `Run.carried`:
saving, hashing, thinning, fallback and resuming follow. A part whose tensors are empty makes no file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from studio.training import checkpoint, optim


class Carried(Protocol):
    def tensors(self) -> Mapping[str, Tensor]:
        """On any device; written bit for bit."""
        ...

    def entries(self) -> Mapping[str, Any]:
        """JSON values."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], entries: Mapping[str, Any]) -> None:
        """Take back what both gave, so that what follows equals never having stopped. Both are empty if the checkpoint has no such part."""
        ...


@dataclass(frozen=True)
class Memory:
    """The optimizer's memory. `names`: of its parameters, in their order."""

    optimizer: torch.optim.Optimizer
    names: Sequence[str]

    def tensors(self) -> Mapping[str, Tensor]:
        return optim.state_tensors(self.optimizer, self.names)

    def entries(self) -> Mapping[str, Any]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor], entries: Mapping[str, Any]) -> None:
        optim.load_state_tensors(self.optimizer, self.names, tensors)


def gathered(parts: Mapping[str, Carried]) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Mapping[str, Any]]]:
    """Tensors and entries of all parts, for a checkpoint. The optimizer has its file always: a checkpoint without one is a thinned one."""
    tensors = {name: held for name, part in parts.items() if (held := part.tensors()) or name == "optimizer"}
    entries = {name: told for name, part in parts.items() if (told := part.entries())}
    return tensors, entries


def restore(parts: Mapping[str, Carried], path: Path) -> None:
    """Put all parts where they stood at a checkpoint."""
    entries = checkpoint.state(path).entries
    for name, part in parts.items():
        part.restore(checkpoint.part(path, name), entries.get(name, {}))
