"""A small image set and a way to run the real loop on the demo bases."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from studio.config import TrainConfig
from studio.data.images import ImageSet, read_set
from studio.events import Event
from studio.families import sources
from studio.training import validation
from studio.training.loop import Preview, train

BASES = ("demo-sdxl", "demo-flux")


@dataclass
class Asked:
    """Requests by the number of the look at them, counted from 0."""

    at: dict[int, str] = field(default_factory=dict)
    looks: int = 0

    def pending(self) -> set[str]:
        self.looks += 1
        return {wish} if (wish := self.at.get(self.looks - 1)) else set()


@dataclass
class Studio:
    """Runs `train` at 64 px, sharing one cache."""

    images: ImageSet
    cache: Path
    device: str = "cpu"

    def config(self, base: str = "demo-sdxl", **values) -> TrainConfig:
        return TrainConfig(images="set", base=base, **({"resolution": 64, "batch_size": 2, "rank": 4, "seed": 7, "steps": 3} | values))

    def run(self, config: TrainConfig, folder: Path, asked: Asked | None = None, preview: Preview | None = None) -> Iterator[Event]:
        base = sources.find(config.base)
        return train(config, base, self.images, folder, self.cache, requests=asked or Asked(), preview=preview, device=self.device)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Models of this size gain nothing from a second thread, and waiting threads crawl on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def studio(tmp_path_factory) -> Studio:
    folder = tmp_path_factory.mktemp("set")
    for i, size in enumerate([(64, 64), (64, 64), (64, 64), (128, 64), (128, 64)]):
        image = Image.new("RGB", size, (40 * i, 120, 200 - 30 * i))
        ImageDraw.Draw(image).ellipse((10, 8, 40, 40), fill=(250, 240, 30 * i))
        image.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a yellow sun number {i}")
    made = Studio(read_set(folder), tmp_path_factory.mktemp("cache"))
    for base in BASES:  # pictures are encoded and all is imported: the runs of the tests look at requests once a step and at nothing else
        list(made.run(made.config(base, steps=1), tmp_path_factory.mktemp("first")))
    gc.collect()
    gc.freeze()
    return made


@pytest.fixture(scope="module")
def plain(studio, tmp_path_factory) -> Callable:
    """Folder and events of a run to which nothing happens; each is run once."""
    found = {}

    def of(base: str = "demo-sdxl", **values) -> tuple[Path, list[Event]]:
        config = studio.config(base, **values)
        key = config.model_dump_json()
        if key not in found:
            folder = tmp_path_factory.mktemp("plain")
            found[key] = folder, list(studio.run(config, folder))
        return found[key]

    return of


@pytest.fixture
def few_levels(monkeypatch) -> None:
    """Looks at held-out pictures take two noise levels: where it is not the figures that count, nine are much work."""
    monkeypatch.setattr(validation, "LEVELS", 2)


@pytest.fixture
def of_kind() -> Callable:
    return lambda events, kind: [event for event in events if event.kind == kind]
