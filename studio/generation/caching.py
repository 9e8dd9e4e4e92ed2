"""First-block caching: looks of the denoiser that would change little take what lies behind its first block from an earlier look.

The first block runs at every look and tells how far its output has moved since the last whole look. As long as that is less than a
threshold, the rest is not computed: a transformer adds what the rest added then, a U-Net takes what it put out then and runs only its
outermost blocks. Whether a look is whole is settled before it begins, from how fast the output moved so far, so that both kinds of
look can be captured as graphs. diffusers' own hooks do this for transformers alone and decide in the middle of a look, which neither a
graph nor a U-Net allows. Sources: ParaAttention, First Block Cache; Ma et al. 2023, DeepCache (arXiv 2312.00858).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from studio.families.base import Components

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-12  # below every mean that is divided by


@dataclass
class _Kept:
    """What stays of whole looks at inputs of one shape. Tensors never move once they are there, so that graphs find them."""

    tensors: "dict[str, Tensor]" = field(default_factory=dict)
    shapes: dict[int, Any] = field(default_factory=dict)  # of what the blocks put out, by their place

    def keep(self, name: str, value: "Tensor") -> None:
        if name in self.tensors:
            self.tensors[name].copy_(value)
        else:
            self.tensors[name] = value.clone()


class FirstBlock:
    """The cache of one denoiser, at work inside `used`. threshold: may be set at any time. whole, short: looks since `used` began."""

    def __init__(self, c: Components):
        denoiser: Any = c.denoiser
        self.threshold = 0.0
        self._unet = c.facts.denoiser == "unet"
        blocks = [*denoiser.transformer_blocks, *denoiser.single_transformer_blocks] if not self._unet else []
        self._first: Any = denoiser.down_blocks[0] if self._unet else blocks[0]
        self._rest: Sequence[Any] = [*denoiser.down_blocks[1:], denoiser.mid_block, *denoiser.up_blocks[:-1]] if self._unet else blocks[1:]
        self._device = c.device
        self._kept: dict[Any, _Kept] = {}
        self._key: Any = None
        self._skips = False
        self._paused = False
        self._change: Tensor | None = None  # of the first block's output since the last whole look, as the look at hand finds it
        self.begin()
        self.whole = self.short = 0

    def begin(self) -> None:
        """A new picture. Its first two looks are whole: one alone tells no speed."""
        self._seen, self._speed, self._since = False, None, 0

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Meanwhile the blocks heed the cache."""
        self.whole = self.short = 0
        blocks = [self._first, *self._rest]
        before = [vars(block).get("forward") for block in blocks]
        self._first.forward = self._unless_paused(self._first.forward, self._leading(self._first.forward))
        for place, block in enumerate(self._rest):
            block.forward = self._unless_paused(block.forward, (self._standing if self._unet else self._passing)(place, block.forward))
        try:
            yield
        finally:
            for block, own in zip(blocks, before, strict=True):
                del block.forward
                if own is not None:
                    block.forward = own

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Meanwhile looks are whole and leave no trace."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def run(self, key: Any, call: Callable[[bool], Any]) -> Any:
        """One look. key: the shapes of its inputs. call: runs the denoiser, told whether the look is short."""
        import torch

        if key != self._key:
            self._key = key
            self.begin()
        if self._change is None:
            self._change = torch.zeros((), device=self._device)
        self._skips = self._speed is not None and self._speed * (self._since + 1) < self.threshold
        found = call(self._skips)
        if self._seen:
            self._speed = float(self._change) / (self._since + 1)
        self._since = self._since + 1 if self._skips else 0
        self._seen = True
        self.short, self.whole = self.short + self._skips, self.whole + (not self._skips)
        return found

    def _unless_paused(self, plain: Callable[..., Any], heeding: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: (plain if self._paused else heeding)(*args, **kwargs)

    @property
    def _mine(self) -> _Kept:
        return self._kept.setdefault(self._key, _Kept())

    def _leading(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """The first block: measures how far its output moved."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            found, kept = plain(*args, **kwargs), self._mine
            moved = found[0] if self._unet else found[1] - kwargs["hidden_states"]
            if "first" in kept.tensors:
                last = kept.tensors["first"]
                assert self._change is not None
                self._change.copy_(_mean(moved - last) / (_mean(last) + TINY))
            if not self._skips:
                kept.keep("first", moved)
                if not self._unet:
                    kept.keep("hidden", found[1])
            return found

        return forward

    def _passing(self, place: int, plain: Callable[..., Any]) -> Callable[..., Any]:
        """A later block of a transformer: hands its input on in a short look, the last one with what the rest added in a whole one."""
        last = place == len(self._rest) - 1

        def forward(*args: Any, **kwargs: Any) -> Any:
            kept = self._mine
            if self._skips:
                hidden = kwargs["hidden_states"]
                return kwargs["encoder_hidden_states"], hidden + kept.tensors["added"] if last else hidden
            words, hidden = plain(*args, **kwargs)
            if last:
                kept.keep("added", hidden - kept.tensors["hidden"])
            return words, hidden

        return forward

    def _standing(self, place: int, plain: Callable[..., Any]) -> Callable[..., Any]:
        """An inner block of a U-Net: puts out nothing in a short look, the last one what it put out in a whole one."""
        last = place == len(self._rest) - 1

        def forward(*args: Any, **kwargs: Any) -> Any:
            from torch.utils import _pytree as pytree

            kept = self._mine
            if not self._skips:
                found = plain(*args, **kwargs)
                kept.shapes[place] = pytree.tree_map(lambda tensor: tensor[:0].new_zeros(()).expand(tensor.shape), found)
                if last:
                    kept.keep("deep", found)
                return found
            return kept.tensors["deep"] if last else kept.shapes[place]

        return forward


def _mean(value: "Tensor") -> "Tensor":
    import torch

    return value.abs().mean(dtype=torch.float32)
