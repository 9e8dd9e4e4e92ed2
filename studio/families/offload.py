"""Blocks of a frozen model that wait in main memory and come to the device when they are needed, as sizes in `away` say.

Weights only ever move to the device: they do not change, so nothing comes back. While one block computes, a side stream copies the one that
will be needed next into the other buffer of a ring: the following block on the way forward, the preceding one on the way back. Where
gradients are wanted a block is passed through again on the way back, so that its weights need to be there only while it computes.
What is trained beside the weights stays on the device.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from studio.errors import RunError
from studio.families.away import SLOTS, aligned, blocks, chosen

COPIERS = 4  # blocks that are copied and page-locked at once
Mine = Callable[[str], bool]  # whether the tensor of that name is trained, not the base's own
Also = Callable[[nn.Module], Iterable[Tensor]]  # further tensors of a module that see the base's own memory


def _none(_: Any) -> Any:
    return ()


def names(model: nn.Module, share: float) -> list[str]:
    """The blocks of the model of which that share waits in main memory."""
    return chosen(blocks({name: tensor.nbytes for name, tensor in _tensors(model)}), share)


def settle(model: nn.Module, waiting: Collection[str], device: torch.device, mine: Mine = _none) -> None:
    """Put everything on the device but the base's own weights of the waiting blocks."""
    inside = tuple(f"{name}." for name in waiting)
    for name, tensor in _tensors(model):
        if mine(name) or not name.startswith(inside):
            tensor.data = tensor.data.to(device)


def wait(model: nn.Module, waiting: Collection[str], device: torch.device, mine: Mine = _none, also: Also = _none, slots: int = SLOTS) -> "Ring":
    """Let these blocks of a settled model come when they are needed; `Ring.close` ends it. Raises RunError if main memory does not do."""

    def block(name: str) -> Block:
        module = model.get_submodule(name)
        own = [tensor for inner, tensor in _tensors(module) if not mine(inner)]
        return Block(module, [*own, *(tensor for one in module.modules() for tensor in also(one))], device)

    with ThreadPoolExecutor(COPIERS) as pool:
        found = list(pool.map(block, waiting))
    return Ring(found, device, slots)


def stream(model: nn.Module, device: torch.device) -> "Ring":
    """Let a model in main memory work on the device, all its blocks waiting."""
    waiting = names(model, 1.0)
    settle(model, waiting, device)
    return wait(model, waiting, device)


def is_waiting(module: nn.Module) -> bool:
    """Whether the module is a block that comes when it is needed, and passes its activations again by itself."""
    return any(isinstance(module.__dict__.get(place), _Coming) for place in _PLACES)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())


@dataclass(frozen=True, eq=False)
class Piece:
    """Where a tensor lies in a block's bytes. offset: in bytes."""

    tensor: Tensor
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]

    def within(self, memory: Tensor) -> Tensor:
        """The tensor as it lies in a copy of the block's bytes."""
        empty = torch.empty(0, dtype=self.tensor.dtype, device=memory.device)
        return empty.set_(memory.untyped_storage(), self.offset // empty.element_size(), self.shape, self.stride)


class Block:
    """A block's weights as one stretch of page-locked main memory, which their tensors are views of while nobody needs them."""

    def __init__(self, module: nn.Module, tensors: list[Tensor], device: torch.device):
        self.module, self.pieces, self.size = module, *_laid_out(tensors)
        self.home = torch.empty(self.size, dtype=torch.uint8)
        self.views: dict[int, list[Tensor]] = {}  # by the address of the memory
        for piece, place in zip(self.pieces, self._views(self.home), strict=True):
            place.copy_(piece.tensor.data)
            piece.tensor.data = place
        self.pinned = device.type == "cuda"
        if self.pinned:
            with torch.cuda.device(device):  # a thread begins on the first card
                _pin(self.home)

    def bind(self, memory: Tensor) -> None:
        """Let the module compute with the weights in this copy of them."""
        for piece, view in zip(self.pieces, self._views(memory), strict=True):
            piece.tensor.data = view

    def unpin(self) -> None:
        if self.pinned:
            _unpin(self.home)
            self.pinned = False

    def _views(self, memory: Tensor) -> list[Tensor]:
        address = memory.data_ptr()
        if address not in self.views:
            self.views[address] = [piece.within(memory) for piece in self.pieces]
        return self.views[address]


@dataclass(eq=False)
class Slot:
    """A buffer on the device. ready: an event after the copy into it, None where copies are waited for. coming: whether nobody has waited for it."""

    memory: Tensor
    ready: Any
    holds: Block | None = None
    coming: bool = False
    bound: bool = False

    def leave(self) -> None:
        """Let the block that is here be at home again."""
        if self.holds and self.bound:
            self.holds.bind(self.holds.home)
        self.holds, self.bound = None, False


class Ring:
    """Brings blocks to the device in the order in which they were needed the first time."""

    def __init__(self, waiting: list[Block], device: torch.device, slots: int = SLOTS):
        self.blocks, self.device = waiting, device
        self.beside = torch.cuda.Stream(device) if device.type == "cuda" else None
        size = max((block.size for block in waiting), default=0)
        self.slots = [self._slot(size) for _ in range(min(slots, len(waiting)))]  # the one that was needed last is the last
        self.order: list[Block] = []
        self.places: dict[Block, int] = {}  # in that order
        self.learnt = False
        self.back, self.last, self.turn = False, 0, 0  # how and at which place a block was needed last; where the way back ends
        self._undo: list[Callable[[], object]] = [_stand_in(block.module, self, block) for block in waiting]

    @property
    def bytes(self) -> int:
        """That wait in main memory."""
        return sum(block.size for block in self.blocks)

    def need(self, block: Block, *, back: bool) -> None:
        """Have the block's weights in place for what the current stream does next, and send for the next block."""
        self._learn(block, back)
        slot = next((slot for slot in self.slots if slot.holds is block), None) or self._fetch(block)
        self._await(slot)
        if not slot.bound:
            block.bind(slot.memory)
            slot.bound = True
        self.slots.remove(slot)
        self.slots.append(slot)
        ahead = self._foreseen(block, back)
        for wanted in ahead:
            if all(slot.holds is not wanted for slot in self.slots):
                self._fetch(wanted, ahead)

    def rest(self) -> None:
        """Forget what is on the device. What the current stream does next may change the buffers."""
        for slot in self.slots:
            self._await(slot)
            slot.leave()

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Within, a pass is recorded, with the ring at rest before: it brings every block that it needs, for a replay finds anything in the buffers."""
        try:
            yield
            self.rest()
        finally:
            for slot in self.slots:
                slot.coming, slot.ready = False, self._event()  # one that was recorded means nothing outside
                slot.leave()

    def close(self) -> None:
        """Leave the blocks where they wait, as ordinary weights in main memory."""
        while self._undo:
            self._undo.pop()()
        self.rest()
        if self.beside:
            torch.cuda.synchronize(self.device)
        for block in self.blocks:
            block.unpin()
        self.slots.clear()

    def _learn(self, block: Block, back: bool) -> None:
        """The first pass tells in which order blocks are needed, and ends when one is needed again; the first way back how far it goes."""
        if block in self.places:
            self.learnt = True
        else:
            self.places[block] = len(self.order)
            self.order.append(block)
        if self.back and not back:
            self.turn = self.last
        self.back, self.last = back, self.places[block]

    def _foreseen(self, block: Block, back: bool) -> list[Block]:
        """The blocks that are needed after this one, as many as there is room for; at the turn those on the device are needed again."""
        if not self.learnt:
            return []
        place, n = self.places[block], len(self.order)
        rest = [*range(place - 1, self.turn - 1, -1), *range(n)] if back else [*range(place + 1, n), *(() if torch.is_grad_enabled() else range(n))]
        return [self.order[at] for at in rest[: len(self.slots) - 1]]

    def _fetch(self, block: Block, wanted: Collection[Block] = ()) -> Slot:
        """Start copying the block into the buffer that was not needed for longest and holds none that is wanted."""
        slot = next(slot for slot in self.slots if slot.holds not in wanted)
        self._await(slot)
        slot.leave()
        with self._after_what_was_asked():
            slot.memory[: block.size].copy_(block.home, non_blocking=True)
            if slot.ready is not None:
                slot.ready.record()
        slot.holds, slot.coming = block, True
        return slot

    def _await(self, slot: Slot) -> None:
        """Let the current stream wait for what is on its way into the buffer."""
        if slot.coming and slot.ready is not None:
            torch.cuda.current_stream(self.device).wait_event(slot.ready)
        slot.coming = False

    @contextmanager
    def _after_what_was_asked(self) -> Iterator[None]:
        """On the side stream, once the device has done what it was asked for so far: nothing of that still reads the buffer."""
        if self.beside is not None:
            self.beside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.beside) if self.beside is not None else nullcontext():
            yield

    def _slot(self, size: int) -> Slot:
        return Slot(torch.empty(size, dtype=torch.uint8, device=self.device), self._event())

    def _event(self) -> Any:
        return torch.cuda.Event() if self.beside else None


_PLACES = ("_compiled_call_impl", "forward")  # what a call of a module runs: the first that is there


@dataclass(frozen=True, eq=False)
class _Coming:
    """Stands in for the pass through a block."""

    ring: Ring
    block: Block
    inner: Callable[..., Any] = field(repr=False)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        again = False

        def passed(*inputs: Any, **named: Any) -> Any:
            nonlocal again
            self.ring.need(self.block, back=again)
            again = True
            return self.inner(*inputs, **named)

        if not torch.is_grad_enabled():
            return passed(*inputs, **named)
        return checkpoint(passed, *inputs, use_reentrant=False, preserve_rng_state=False, **named)


def _stand_in(module: nn.Module, ring: Ring, block: Block) -> Callable[[], object]:
    """Let calls of the module bring its weights first; what undoes it."""
    place = next(place for place in _PLACES if getattr(module, place) is not None)
    before, inner = module.__dict__.get(place), getattr(module, place)
    module.__dict__[place] = _Coming(ring, block, inner)
    return lambda: module.__dict__.pop(place) if before is None else module.__dict__.update({place: before})


def _laid_out(tensors: list[Tensor]) -> tuple[list[Piece], int]:
    """The tensors one after another, those that see the same memory at the same place; and the bytes in all."""
    unique = {id(tensor): tensor for tensor in tensors if tensor.numel()}
    inside = sorted(unique.values(), key=lambda tensor: (tensor.data_ptr(), -_extent(tensor)))
    pieces: list[Piece] = []
    start = end = place = size = 0
    for tensor in inside:
        address = tensor.data_ptr()
        if address >= end or not pieces:
            start, end, place = address, address + _extent(tensor), size
            size += aligned(_extent(tensor))
        assert address + _extent(tensor) <= end  # views lie within the one that they are views of
        pieces.append(Piece(tensor, place + address - start, tensor.shape, tensor.stride()))
    return pieces, size


def _extent(tensor: Tensor) -> int:
    """Bytes from its first number to its last."""
    return (1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))) * tensor.element_size()


def _pin(memory: Tensor) -> None:
    # torch's own page-locked memory comes in powers of two, which for blocks of 283 MB would nearly double what is taken.
    code = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)  # type: ignore[union-attr]
    if int(code):
        raise RunError(f"{memory.nbytes / 1e6:.0f} MB more of main memory cannot be locked (error {int(code)}); lower block_offload, or close other programs")


def _unpin(memory: Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())  # type: ignore[union-attr]
