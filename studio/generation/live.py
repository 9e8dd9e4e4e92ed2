"""The live part of a stack: side paths on the base's layers, whose strengths change at no cost while the weights stay untouched."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from studio.generation import strengths
from studio.generation.baked import finite
from studio.generation.side import MULTIPLE, Side, attach, detach, shapes

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module

Schedule = tuple[tuple[float, float], ...]
Factors = Callable[[str, str], "tuple[Tensor, Tensor]"]  # adapter's key, layer's path -> up (out, r), down (r, in * k * k)
Place = Callable[[str], "tuple[torch.device, torch.dtype]"]  # layer's path -> where its side path lies and in which numbers


@dataclass(frozen=True)
class Share:
    """What one adapter has in one layer: its key, its strength for each image of the batch, and how that goes over the steps."""

    key: str
    weights: tuple[float, ...]
    schedule: Schedule = ()


Shares = Mapping[str, tuple[Share, ...]]  # by layer's path, in one order for all stacks


@dataclass
class _Layer:
    """A side path, its `up` in fp32 without strengths, and the columns that each share has of it."""

    side: Side
    up: "Tensor"
    columns: tuple[tuple[str, int], ...]


class Live:
    """Side paths by module path. `layout` changes whenever a captured graph of the base would no longer be right."""

    def __init__(self, modules: "Mapping[str, Module]", place: Place):
        self._modules, self._place = modules, place
        self._layers: dict[str, _Layer] = {}
        self._on: frozenset[str] = frozenset()
        self._shares: Shares = {}
        self._moving: tuple[int, Tensor] | None = None  # images, and all strengths: layer after layer, image after image
        self._terms: list[tuple[Tensor, Schedule]] = []
        self._version = 0

    @property
    def layout(self) -> str:
        """A word for which layers have side paths and where their buffers lie; empty without any."""
        return f"live-{self._version}" if self._on else ""

    @property
    def layers(self) -> int:
        return len(self._on)

    def set(self, shares: Shares, images: int, factors: Factors) -> bool:
        """Give exactly these layers a side path. False if a number is beyond the base's format; nothing is undone then."""
        import torch

        if shares == self._shares:
            return True
        if not shares:
            self._switch(())
            self._shares = {}
            return True
        with torch.no_grad():
            for path, row in shares.items():
                self._fill(path, row, factors)
            self._switch(shares)
            self._strengthen(shares, images)
            self._shares = dict(shares)
            return finite([tensor for layer in self._layers.values() for tensor in (layer.side.up, layer.side.down)])

    def at(self, position: float) -> None:
        """Move scheduled strengths to a share of the denoising: 0 is the first step, 1 the last."""
        if self._moving is None or not self._on:
            return
        total = self._terms[0][0] * strengths.at(self._terms[0][1], position)
        for term, schedule in self._terms[1:]:
            total.add_(term, alpha=strengths.at(schedule, position))
        self._moving[1].copy_(total)

    def clear(self) -> None:
        """Take every side path off and let its memory go."""
        self._switch(())
        self._shares, self._layers, self._moving, self._terms = {}, {}, None, []

    def _fill(self, path: str, row: tuple[Share, ...], factors: Factors) -> None:
        """Put the factors of these adapters into the layer's buffers, into the same ones if they fit."""
        import torch

        layer = self._layers.get(path)
        if layer and [key for key, _ in layer.columns] == [share.key for share in row]:
            return
        found = [factors(share.key, path) for share in row]
        columns = tuple((share.key, down.shape[0]) for share, (_, down) in zip(row, found, strict=True))
        needed = sum(rank for _, rank in columns)
        if layer is None or layer.side.rank < needed:
            layer = self._layers[path] = self._empty(path, -(-needed // MULTIPLE) * MULTIPLE)
            self._version += 1
        layer.columns = columns
        layer.up.zero_()
        layer.side.down.zero_()
        layer.up[:, :needed] = torch.cat([up.to(layer.up) for up, _ in found], dim=1)
        layer.side.down.flatten(1)[:needed] = torch.cat([down.to(layer.up.device) for _, down in found]).to(layer.side.down.dtype)

    def _empty(self, path: str, rank: int) -> _Layer:
        import torch

        module = self._modules[path]
        device, dtype = self._place(path)
        down, up = shapes(module, rank)
        side = Side(torch.zeros(down, device=device, dtype=dtype), torch.zeros(up, device=device, dtype=dtype))
        return _Layer(side, torch.zeros(up[:2], device=device), ())

    def _switch(self, wanted: Collection[str]) -> None:
        """Attach and detach. The side paths of an emptied stack keep their buffers, so that it comes back with the same layout."""
        for path in self._on - {*wanted}:
            detach(self._modules[path])
        if wanted and {*wanted} != self._layers.keys():
            self._layers = {path: self._layers[path] for path in wanted}
            self._version += 1
        for path in wanted:
            attach(self._modules[path], self._layers[path].side)
        self._on = frozenset(wanted)

    def _strengthen(self, shares: Shares, images: int) -> None:
        schedules = dict.fromkeys(share.schedule for row in shares.values() for share in row)
        if images == 1 and list(schedules) == [()]:
            self._fold(shares, self._spread(shares, 1, ()))
            return
        self._terms = [(self._spread(shares, images, schedule), schedule) for schedule in schedules]
        flat = self._terms[0][0]
        folded = any(self._layers[path].side.strengths is None for path in shares)
        if folded or self._moving is None or self._moving[0] != images or self._moving[1].numel() != flat.numel():
            self._moving = (images, flat.to(self._place(next(iter(shares)))[1]).clone())
            self._version += 1
        begin = 0
        for path in shares:
            layer = self._layers[path]
            end = begin + images * layer.side.rank
            layer.side.strengths = self._moving[1][begin:end].view(images, layer.side.rank)
            layer.side.up.copy_(layer.up.view_as(layer.side.up))
            begin = end
        self.at(0.0)

    def _fold(self, shares: Shares, flat: "Tensor") -> None:
        if self._moving is not None:
            self._moving, self._terms = None, []
            self._version += 1
        begin = 0
        for path in shares:
            layer = self._layers[path]
            end = begin + layer.side.rank
            layer.side.strengths = None
            layer.side.up.copy_((layer.up * flat[begin:end]).view_as(layer.side.up))
            begin = end

    def _spread(self, shares: Shares, images: int, schedule: Schedule) -> "Tensor":
        """All strengths that go by this schedule in one vector: layer after layer, image after image, column after column."""
        import torch

        values: list[float] = []
        for path, row in shares.items():
            layer = self._layers[path]
            for image in range(images):
                columns = [(rank, share.weights[image] if share.schedule == schedule else 0.0) for (_, rank), share in zip(layer.columns, row, strict=True)]
                values += [weight for rank, weight in columns for _ in range(rank)]
                values += [0.0] * (layer.side.rank - sum(rank for rank, _ in columns))
        return torch.tensor(values, device=self._place(next(iter(shares)))[0])
