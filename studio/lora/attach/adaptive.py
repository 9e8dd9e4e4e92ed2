"""AdaLoRA: B E A with singular values E that compete for a budget of ranks; what lost is left out of the file.

PEFT has the layers and the allocator, but drives it only from its own model class: here the training loop does. Source: arXiv 2303.10512.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.config.training.network import Network
from studio.errors import SettingsError
from studio.lora.adapter import Layer, LowRank
from studio.lora.attach.choice import Place
from studio.lora.attach.weights import NAME, other_kind, other_size, taken

if TYPE_CHECKING:
    from torch import Tensor

SPARE = 1.5  # ranks to begin with, for each that is left in the end; PEFT's own defaults are 12 and 8
WARM, FINAL = 0.1, 0.3  # shares of the run before ranks are taken away, and after
ALLOCATIONS = 100  # times that ranks are shared out anew, at most
ORTHOGONALITY = 0.1  # weight of the penalty that keeps the factors of a layer orthogonal, as the paper's experiments have it
LEAST_STEPS = 10  # below, there is no phase between the warm-up and the end


class AdaLoRA:
    """The rank of the settings is the mean rank in the end; training begins with half as many again."""

    def config(self, network: Network, places: Sequence[Place], pattern: str) -> Any:
        return _config(network, LEAST_STEPS, target_modules=pattern, lora_alpha=1, lora_dropout=network.dropout)

    def settle(self, module: Any, place: Place) -> None:
        """Scaled by alpha / rank of the settings, whatever ranks the layer has at the moment."""
        module.ranknum[NAME].data.fill_(1.0)
        module.scaling[NAME] = place.alpha / place.rank

    def collect(self, module: Any) -> LowRank:
        """A plain LoRA of the ranks that are left; at least one, so that the layer is known."""
        down, values, up = (taken(part[NAME]) for part in (module.lora_A, module.lora_E, module.lora_B))
        kept = values.flatten().nonzero().flatten()
        kept = kept if len(kept) else kept.new_zeros(1)
        base = module.get_base_layer().weight
        shape = tuple(base.shape[2:])
        up = (up * values.flatten())[:, kept].reshape(base.shape[0], len(kept), *(1 for _ in shape))
        return LowRank(down[kept].reshape(len(kept), *base.shape[1:]), up, _scale(module) * len(kept))

    def fill(self, module: Any, layer: Layer | None, path: str) -> None:
        down, values, up = module.lora_A[NAME], module.lora_E[NAME], module.lora_B[NAME]
        values.zero_()
        if layer is None:
            return
        if not isinstance(layer, LowRank):
            raise other_kind(path, layer, "adalora")
        if layer.rank > down.shape[0] or layer.shape != tuple(module.get_base_layer().weight.shape):
            raise other_size(path, layer, down.shape[0])
        down[: layer.rank] = layer.down.flatten(1).to(down)
        up[:, : layer.rank] = layer.up.flatten(1).to(up) * (layer.alpha / layer.rank / _scale(module))
        values[: layer.rank] = 1.0


def _scale(module: Any) -> float:
    """What PEFT multiplies B E A with; it adds 1e-5 to the rank that it divides by."""
    return float(module.scaling[NAME]) / (float(module.ranknum[NAME]) + 1e-5)


@dataclass
class Allocator:
    """Shares the budget out as training goes on. Weights are given by name, exact in fp32, with their gradients.

    Its memory is tensors by name and the number of steps, so that a resumed run goes on exactly.
    """

    allocator: Any
    steps: int = 0

    @classmethod
    def of(cls, network: Network, total: int, weights: "Mapping[str, Tensor]") -> "Allocator":
        """total: steps of the run. Raises SettingsError if they are too few to share anything out."""
        from peft.tuners.adalora.layer import RankAllocator

        if total < LEAST_STEPS:
            raise SettingsError(f"steps {total} is too short for adalora, which needs {LEAST_STEPS} to share ranks out; ask for more, or set network to lora")
        return cls(RankAllocator(_Named(weights), _config(network, total), NAME))

    def regularise(self, weights: "Mapping[str, Tensor]") -> None:
        """Add the gradient of the penalty that keeps the rows of A and the columns of B orthonormal."""
        import torch

        with torch.no_grad():
            for name, weight in weights.items():
                if weight.grad is None or not (".lora_A." in name or ".lora_B." in name):
                    continue
                rows = weight if ".lora_A." in name else weight.T
                off = rows @ rows.T - torch.eye(len(rows), device=rows.device)
                norm = off.norm().clamp_min(1e-12)
                # d |W W' - 1| = 2 (W W' - 1) W / |W W' - 1|, and the penalty is the mean over all matrices
                gradient = (off @ rows) * (2 * ORTHOGONALITY / (norm * self._matrices))
                weight.grad += gradient if ".lora_A." in name else gradient.T

    def moved(self, weights: "Mapping[str, Tensor]") -> None:
        """After an optimizer step: what mattered, and which ranks stay. Reads the step's gradients, changes E."""
        self.steps += 1
        self.allocator.update_and_allocate(_Named(weights), self.steps)

    @property
    def _matrices(self) -> int:
        return 2 * len(self.allocator.name_set)

    def memory(self) -> "dict[str, Tensor]":
        return {f"{table}/{name}": tensor for table in ("exp_avg_ipt", "exp_avg_unc") for name, tensor in getattr(self.allocator, table).items()}

    def recall(self, memory: "Mapping[str, Tensor]", steps: int, weights: "Mapping[str, Tensor]") -> None:
        """Give back what `memory` told after so many steps; the weights say on which device."""
        self.steps = steps
        for key, tensor in memory.items():
            table, _, name = key.partition("/")
            if name:
                getattr(self.allocator, table)[name] = tensor.to(weights[name])
                self.allocator.ipt.setdefault(name, tensor.to(weights[name]))  # computed anew before it is read


@dataclass(frozen=True)
class _Named:
    """What PEFT's allocator asks of a model."""

    weights: "Mapping[str, Tensor]"

    def named_parameters(self) -> "Iterator[tuple[str, Tensor]]":
        yield from self.weights.items()


def _config(network: Network, total: int, **more: Any) -> Any:
    from peft import AdaLoraConfig

    target = network.rank or 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Note that `r` is not used")
        return AdaLoraConfig(
            target_r=target,
            init_r=math.ceil(SPARE * target),
            tinit=int(WARM * total),
            tfinal=int(FINAL * total),
            deltaT=max(1, total // ALLOCATIONS),
            total_step=total,
            **more,
        )
