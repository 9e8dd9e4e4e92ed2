"""AdaLoRA: B E A with a number of E for each rank of a layer, by which ranks compete for a budget; what lost is left out of the file.

PEFT has the layers and the allocator, but drives it only from its own model class: here the training loop does. Source: arXiv 2303.10512.
The layers begin as those of a LoRA do (B zero, E one, the rows of A orthogonal), so that a run learns as fast as one. The paper's own
start (B and A small, E zero) and its penalty that keeps B and A orthonormal ended behind a plain LoRA of the same file size: the figures
are in assets/docs/notes.md.
"""

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

SHARE = 0.25  # of the ranks that a run begins with, left in the end unless the settings say another mean
WARM, FINAL = 0.5, 0.2  # shares of the run before ranks are taken away, and after: a LoRA that has hardly learned does not show what it needs
LENGTH = 3**-0.5  # of the rows that A begins with, as they are on the mean in a LoRA of PEFT
ALLOCATIONS = 100  # times that ranks are shared out anew, at most
LEAST_STEPS = 10  # below, there is no phase between the warm-up and the end


class AdaLoRA:
    """Every layer begins with the rank of the settings; in the end `final_rank` are left on the mean."""

    def config(self, network: Network, places: Sequence[Place], pattern: str) -> Any:
        return _config(network, LEAST_STEPS, target_modules=pattern, lora_alpha=1, lora_dropout=network.dropout)

    def settle(self, module: Any, place: Place) -> None:
        """Started as a LoRA, and scaled by alpha / rank of the settings, whatever ranks the layer has at the moment."""
        import torch
        from torch import nn

        module.ranknum[NAME].data.fill_(1.0)
        module.scaling[NAME] = place.alpha / place.rank
        down = module.lora_A[NAME]
        # In fp32, which its QR asks for, and on the CPU, as PEFT draws: the start is the same wherever the base lies.
        rows = nn.init.orthogonal_(torch.empty(down.shape), gain=LENGTH)
        down.data.copy_(rows)
        nn.init.ones_(module.lora_E[NAME])
        nn.init.zeros_(module.lora_B[NAME])

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
        """Ranks beyond those of the layer are as in a fresh network: without effect, and free to learn."""
        down, values, up = module.lora_A[NAME], module.lora_E[NAME], module.lora_B[NAME]
        values.fill_(1.0)
        up.zero_()
        if layer is None:
            return
        if not isinstance(layer, LowRank):
            raise other_kind(path, layer, "adalora")
        if layer.rank > down.shape[0] or layer.shape != tuple(module.get_base_layer().weight.shape):
            raise other_size(path, layer, down.shape[0])
        down[: layer.rank] = layer.down.flatten(1).to(down)
        up[:, : layer.rank] = layer.up.flatten(1).to(up) * (layer.alpha / layer.rank / _scale(module))


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
        allocator: Any = RankAllocator(_Named(weights), _config(network, total), NAME)
        # PEFT knows whole mean ranks only; at least one rank fewer than at first, or there would be nothing to share out.
        wanted = round(final_rank(network) * len(allocator.name_set))
        allocator.target_bgt = min(max(1, wanted), allocator.init_bgt - 1)
        return cls(allocator)

    def moved(self, weights: "Mapping[str, Tensor]") -> None:
        """After an optimizer step: what mattered, and which ranks stay. Reads the step's gradients, changes E."""
        self.steps += 1
        self.allocator.update_and_allocate(_Named(weights), self.steps)

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


def final_rank(network: Network) -> float:
    """Ranks a layer that are left in the end, on the mean."""
    return network.final_rank or SHARE * (network.rank or 0)


def _config(network: Network, total: int, **more: Any) -> Any:
    from peft import AdaLoraConfig

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Note that `r` is not used")
        return AdaLoraConfig(
            init_r=network.rank or 0,
            tinit=int(WARM * total),
            tfinal=int(FINAL * total),
            deltaT=max(1, total // ALLOCATIONS),
            total_step=total,
            **more,
        )
