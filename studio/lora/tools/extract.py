"""A LoRA from what a tuned model has more than its base."""

import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.errors import BaseError, FormatError, SettingsError
from studio.events import Loading
from studio.families import flux_names, get, stored
from studio.families.base import Base
from studio.lora.adapter import Adapter, Layer
from studio.lora.tools import Made, Progress, factors, origin

if TYPE_CHECKING:
    from torch import Tensor

RANK = 32
NAMED = 12  # tensors that are named among those that cannot be carried


@dataclass(frozen=True)
class Plan:
    """What to carry and how closely."""

    targets: str = "full+conv"
    rank: int = 0  # at most; 0 is RANK without an energy, else no limit
    energy: float = 0.0
    text_encoders: bool = True

    @property
    def most(self) -> int:
        return self.rank or (0 if self.energy else RANK)


def extract(tuned: Base, base: Base, name: str, plan: Plan, device: str = "cpu") -> Generator[Loading, None, Made]:
    """The difference of two models of one family as low-rank layers; one tensor of each is in memory at a time.

    Raises FormatError if they are equal, or differ only where a LoRA has no layers; BaseError if they do not compare.
    """
    if tuned.family != base.family:
        raise BaseError(f"{tuned.name} is {get(tuned.family).facts.title}, {base.name} is {get(base.family).facts.title}; name a base of the same family")
    carried = _carried(base, plan)
    layers: dict[str, Layer] = {}
    told: dict[str, dict[str, float]] = {}
    left: dict[str, float] = {}
    lost = energy = 0.0
    yield Loading(phase="reading both models")
    with stored.opened(tuned) as new, stored.opened(base) as old:
        shared = [piece for one in new.stored for piece in one.slot.parts if piece in old.shapes]
        _check(tuned, base, shared, new, old)
        progress = Progress("comparing", len(shared))
        for piece in shared:
            before, after = old.read(piece), new.read(piece)
            path = piece.removesuffix(".weight")
            if not _same(before, after):
                delta = after.float() - before.float()
                if carried(piece, before):
                    spectrum = factors.of_matrix(delta.to(device), plan.most or min(delta.flatten(1).shape))
                    rank = min(filter(None, (plan.most, spectrum.rank_for(plan.energy) if plan.energy else spectrum.rank)))
                    layers[path] = spectrum.cut(rank)
                    told[path] = {"rank": layers[path].rank, "residual": factors.share(spectrum.lost(rank), spectrum.energy)}
                    lost, energy = lost + spectrum.lost(rank), energy + spectrum.energy
                else:
                    left[piece] = float(delta.norm() / before.float().norm().clamp(min=1e-12))
            yield from progress.step()
    if not layers:
        why = f"only in {', '.join(list(left)[:3])}, which a LoRA with these targets cannot carry" if left else "in nothing"
        raise FormatError(f"{tuned.name} differs from {base.name} {why}; nothing was extracted")
    metadata = origin.of_adapter(base.family, name, [], f"Extracted: {tuned.title or tuned.name} - {base.title or base.name}", plan.rank)
    metadata |= {"modelspec.merged_from": f"{tuned.title or tuned.name}, {base.title or base.name}", "ss_sd_model_name": base.name}
    report = {"residual": factors.share(lost, energy), "layers": told, "left_out": left}
    return Made(Adapter(base.family, layers, dict(sorted(metadata.items()))), report, _notes(left))


def _carried(base: Base, plan: Plan) -> Any:
    """Whether a tensor of that name and shape can be a layer of the adapter."""
    facts = get(base.family).facts
    patterns = facts.lora_targets.get(plan.targets)
    if patterns is None:
        raise SettingsError(f"targets {plan.targets!r} is unknown for {facts.title}; known are {', '.join(facts.lora_targets)}")
    inside = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))

    def carried(name: str, tensor: "Tensor") -> bool:
        part, _, inner = name.removesuffix(".weight").partition(".")
        if not name.endswith(".weight") or tensor.dim() < 2:
            return False
        if part in facts.text_encoders:
            return plan.text_encoders and flux_names.TEXT.fullmatch(inner) is not None
        return part == facts.denoiser and inside.fullmatch(inner) is not None

    return carried


def _check(tuned: Base, base: Base, shared: list[str], new: stored.Weights, old: stored.Weights) -> None:
    if not shared:
        raise BaseError(f"{tuned.name} and {base.name} have no tensor in common; is one of them incomplete?")
    for name in shared:
        if new.shapes[name] != old.shapes[name]:
            raise BaseError(f"{name}: {tuned.name} has {list(new.shapes[name])}, {base.name} has {list(old.shapes[name])}; it was not tuned from this base")


def _same(one: "Tensor", other: "Tensor") -> bool:
    """Whether two tensors are equal, or one is the other rounded."""
    import torch

    if one.dtype == other.dtype:
        return torch.equal(one.float(), other.float())
    return any(torch.equal(a.to(b.dtype).float(), b.float()) for a, b in ((one, other), (other, one)))


def _notes(left: dict[str, float]) -> tuple[str, ...]:
    if not left:
        return ()
    worst = sorted(left, key=lambda name: -left[name])[:NAMED]
    listed = ", ".join(f"{name} ({left[name]:.1%})" for name in worst)
    more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
    return (f"{len(left)} tensors differ that this LoRA does not carry (norms, biases, embeddings, other targets): {listed}{more}",)
