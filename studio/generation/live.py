"""The live part of a stack: side paths on the base's layers, whose strengths change at no cost while the weights stay untouched."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from studio.generation import strengths
from studio.generation.baked import finite
from studio.generation.side import MULTIPLE, Group, Side, adds_up, attach, detach, shapes

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module

Schedule = tuple[tuple[float, float], ...]
Factors = Callable[[str, str], "tuple[Tensor, Tensor]"]  # adapter's key, layer's path -> up (out, r), down (r, in * k * k)
Place = Callable[[str], "tuple[torch.device, torch.dtype]"]  # layer's path -> where its side path lies and in which numbers
Inputs = Callable[[str], Any]  # layer's path -> a word for what it sees, the same for layers of one input; None for one of its own


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
    columns: tuple[tuple[str, int], ...] = ()


@dataclass
class _Bank:
    """All `up` of one shape and place: those that products read, and those in fp32 without strengths, (n, out, R) each."""

    paths: list[str]
    up: "Tensor"
    exact: "Tensor"


class Live:
    """Side paths by module path. `layout` changes whenever a captured graph of the base would no longer be right."""

    def __init__(self, modules: "Mapping[str, Module]", place: Place, inputs: Inputs = lambda _: None):
        self._modules, self._place, self._inputs = modules, place, inputs
        self._layers: dict[str, _Layer] = {}
        self._groups: list[tuple[Group, list[str]]] = []
        self._banks: list[_Bank] = []
        self._on: frozenset[str] = frozenset()
        self._shares: Shares = {}
        self._moving: tuple[int, Tensor] | None = None  # images, and all strengths: group after group, image after image
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
            self._fill(shares, factors)
            self._switch(shares)
            self._strengthen(shares, images)
            self._shares = dict(shares)
            return finite([tensor for bank in self._banks for tensor in (bank.up, bank.exact)] + [group.down for group, _ in self._groups])

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
        self._shares, self._layers, self._groups, self._banks, self._moving, self._terms = {}, {}, [], [], None, []

    def _fill(self, shares: Shares, factors: Factors) -> None:
        """Put the factors of these adapters into the layers' buffers, into the same ones if they fit."""
        import torch

        found = {
            path: [(share.key, *factors(share.key, path)) for share in row]
            for path, row in shares.items()
            if path not in self._layers or [key for key, _ in self._layers[path].columns] != [share.key for share in row]
        }
        needed = {path: sum(down.shape[0] for _, _, down in row) for path, row in found.items()}
        if shares.keys() != self._layers.keys() or any(self._layers[path].side.rank < rank for path, rank in needed.items()):
            found |= {path: [(share.key, *factors(share.key, path)) for share in row] for path, row in shares.items() if path not in found}
            self._build({path: -(-sum(down.shape[0] for _, _, down in row) // MULTIPLE) * MULTIPLE for path, row in found.items()})
        wide: list[Tensor] = []
        narrow: list[Tensor] = []
        ups: list[Tensor] = []
        downs: list[Tensor] = []
        for path, row in found.items():
            layer, begin = self._layers[path], 0
            layer.columns = tuple((key, down.shape[0]) for key, _, down in row)
            flat = layer.side.down.flatten(1)
            for _, up, down in row:
                end = begin + down.shape[0]
                wide.append(layer.up[:, begin:end])
                narrow.append(flat[begin:end])
                ups.append(up)
                downs.append(down)
                begin = end
            if begin < layer.side.rank:
                layer.up[:, begin:].zero_()
                flat[begin:].zero_()
        if wide:
            torch._foreach_copy_(wide, ups)
            torch._foreach_copy_(narrow, downs)

    def _build(self, ranks: Mapping[str, int]) -> None:
        """New buffers for side paths of these ranks. Layers of one input lie together, those of one shape next to each other."""
        import torch

        self._switch(())
        self._version += 1
        members: dict[Any, list[str]] = {}
        for path in ranks:
            word = self._inputs(path)
            members.setdefault((path,) if word is None else (word, self._place(path), shapes(self._modules[path], 1)[0]), []).append(path)

        def shape(path: str) -> tuple[Any, ...]:
            return (adds_up(self._modules[path]), *shapes(self._modules[path], ranks[path])[1], *self._place(path))

        rows = [sorted(paths, key=lambda path: (shape(path)[:3], path)) for paths in members.values()]
        by_shape: dict[Any, list[str]] = {}
        for row in rows:
            for path in row:
                by_shape.setdefault(shape(path), []).append(path)
        self._banks = []
        places: dict[str, tuple[_Bank, int]] = {}
        for (_, out, rank, *_), paths in by_shape.items():
            device, dtype = self._place(paths[0])
            bank = _Bank(paths, torch.zeros(len(paths), out, rank, device=device, dtype=dtype), torch.zeros(len(paths), out, rank, device=device))
            places |= {path: (bank, number) for number, path in enumerate(paths)}
            self._banks.append(bank)
        self._layers, self._groups = {}, [(self._group(row, ranks, places), row) for row in rows]
        self._layers = {
            path: _Layer(side, places[path][0].exact[places[path][1]]) for group, row in self._groups for path, side in zip(row, group.sides, strict=True)
        }

    def _group(self, row: Sequence[str], ranks: Mapping[str, int], places: "Mapping[str, tuple[_Bank, int]]") -> Group:
        """The buffers of layers of one input; layers of one shape come one after the other, in their bank too."""
        import torch

        device, dtype = self._place(row[0])
        group = Group(torch.zeros(shapes(self._modules[row[0]], sum(ranks[path] for path in row))[0], device=device, dtype=dtype))
        begin = 0
        for path in row:
            (bank, number), columns = places[path], slice(begin, begin + ranks[path])
            up = bank.up[number].view(shapes(self._modules[path], ranks[path])[1])
            group.sides.append(Side(group, group.down[columns], up, columns))
            begin = columns.stop
        for bank in self._banks:
            same = [path for path in row if places[path][0] is bank and adds_up(self._modules[path])]
            if same:
                first = places[same[0]][1]
                group.whole.append((group.sides[row.index(same[0])].columns.start, bank.up[first : first + len(same)]))
        return group

    def _switch(self, wanted: Collection[str]) -> None:
        """Attach and detach. The side paths of an emptied stack keep their buffers, so that it comes back with the same layout."""
        for path in self._on - {*wanted}:
            detach(self._modules[path])
        for group, _ in self._groups:
            group.begin()
        for path in wanted:
            attach(self._modules[path], self._layers[path].side)
        self._on = frozenset(wanted)

    def _strengthen(self, shares: Shares, images: int) -> None:
        schedules = dict.fromkeys(share.schedule for row in shares.values() for share in row)
        if images == 1 and list(schedules) == [()]:
            self._fold(shares)
            return
        self._terms = [(self._spread(shares, images, schedule), schedule) for schedule in schedules]
        flat = self._terms[0][0]
        if self._moving is None or self._moving[0] != images or self._moving[1].numel() != flat.numel() or self._groups[0][0].strengths is None:
            self._moving = (images, flat.to(self._place(next(iter(shares)))[1]).clone())
            self._version += 1
        begin = 0
        for group, _ in self._groups:
            rank = group.down.shape[0]
            group.strengths = self._moving[1][begin : begin + images * rank].view(images, rank)
            begin += images * rank
        for bank in self._banks:
            bank.up.copy_(bank.exact)
        self.at(0.0)

    def _fold(self, shares: Shares) -> None:
        import torch

        if self._moving is not None:
            self._moving, self._terms = None, []
            self._version += 1
        for group, _ in self._groups:
            group.strengths = None
        row = self._columns(shares, ())
        for bank in self._banks:
            weights = torch.tensor([weight for path in bank.paths for weight in row(path, 0)], device=bank.up.device)
            bank.up.copy_(bank.exact * weights.view(len(bank.paths), 1, -1))

    def _spread(self, shares: Shares, images: int, schedule: Schedule) -> "Tensor":
        """All strengths that go by this schedule in one vector: group after group, image after image, column after column."""
        import torch

        row = self._columns(shares, schedule)
        values = [weight for _, paths in self._groups for image in range(images) for path in paths for weight in row(path, image)]
        return torch.tensor(values, device=self._place(next(iter(shares)))[0])

    def _columns(self, shares: Shares, schedule: Schedule) -> Callable[[str, int], list[float]]:
        """A call that gives the strengths of one layer's columns for one image, by this schedule. Most layers have the same."""

        @cache
        def spread(weights: tuple[tuple[int, float], ...], rank: int) -> list[float]:
            values = [weight for n, weight in weights for _ in range(n)]
            return values + [0.0] * (rank - len(values))

        def row(path: str, image: int) -> list[float]:
            layer = self._layers[path]
            weights = zip(layer.columns, shares[path], strict=True)
            own = tuple((n, share.weights[image] if share.schedule == schedule else 0.0) for (_, n), share in weights)
            return spread(own, layer.side.rank)

        return row
