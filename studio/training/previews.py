"""Pictures during training: lend the live components to a sampler and take them back unchanged."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from studio.data.cache import release
from studio.errors import Cancelled, StudioError
from studio.events import Event, Sample, Warned
from studio.families import offload
from studio.families.base import Components, Family
from studio.killpoints import reached

Preview = Callable[[Components, int, Path], Iterable[Sample]]
Weights = Callable[[], AbstractContextManager[None]]  # within, the layers hold the weights to show


class Previewer:
    """Calls `preview` with all parts of the base. VAE and text encoders rest in main memory between calls.

    apart: what is too large for the device beside the rest; text encoders then come to it block by block.
    """

    def __init__(self, preview: Preview | None, family: Family, components: Components, folder: Path, weights: Weights, apart: Collection[str] = frozenset()):
        self.preview, self.family, self.components, self.folder, self.weights = preview, family, components, folder, weights
        self.apart = apart
        self.resting: dict[str, Any] | None = None

    def show(self, step: int) -> Iterator[Event]:
        """The samples of a step. One that fails becomes a warning: a picture is no reason to lose a run."""
        if self.preview is None:
            return
        try:
            with self.weights(), self._lent():
                yield from self._drawn(self.preview, step)
        except torch.OutOfMemoryError:
            yield Warned(message=f"no preview at step {step}: the device has too little memory for it beside the training; draw with the checkpoint afterwards")

    def _drawn(self, preview: Preview, step: int) -> Iterator[Event]:
        samples = iter(preview(self.components, step, self.folder))
        while True:
            try:
                sample = next(samples, None)
            except Cancelled:
                raise
            except StudioError as error:
                yield Warned(message=f"no preview at step {step}: {error}")
                return
            if sample is None:
                return
            reached("sample")
            yield sample

    @contextmanager
    def _lent(self) -> Iterator[None]:
        """All parts in place, evaluation mode, random state of the caller put back afterwards."""
        c = self.components
        if self.resting is None:
            loaded = self.family.load(c.base, ["vae", "text"], c.dtype, torch.device("cpu"))
            self.resting = {name: part for name, part in loaded.parts.items() if name not in c.parts}
        before = dict(c.parts)
        devices = [c.device] if c.device.type == "cuda" else []
        training = c.denoiser.training
        rings: list[offload.Ring] = []
        try:
            rings += self._fetched(self.resting)
            c.parts.update(self.resting)
            c.denoiser.eval()
            with torch.random.fork_rng(devices):
                yield
        finally:
            c.denoiser.train(training)
            c.parts.clear()
            c.parts.update(before)
            for ring in rings:
                ring.close()
            if c.device.type != "cpu":
                for part in self.resting.values():
                    if isinstance(part, nn.Module):
                        part.to("cpu")
                release(c.device)

    def _fetched(self, parts: dict[str, Any]) -> Iterator[offload.Ring]:
        """Put the parts on the device, text encoders that are too large for it block by block."""
        c = self.components
        for name, part in parts.items():
            if name in c.facts.text_encoders and "text" in self.apart:
                yield offload.stream(part, c.device)
            elif isinstance(part, nn.Module):
                part.to(c.device)
