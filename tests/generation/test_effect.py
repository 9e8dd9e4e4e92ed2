"""The claim all else serves: a LoRA trained on a style draws that style, as much as its weight says, and not at all at 0.

Measured on subjects that the set does not show, by `evaluation.style`.
"""

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from PIL import Image

from studio.config import GenerateConfig, TrainConfig
from studio.data.images import ImageSet, read_set
from studio.evaluation.style import describe, frechet
from studio.events import Checkpoint, Sample
from studio.events import Image as Drawn
from studio.families import sources
from studio.families.base import Components
from studio.generation.sampler import generate, preview
from studio.lora import formats
from studio.lora.adapter import Adapter
from studio.training import checkpoint
from studio.training.loop import train
from tests.generation.conftest import BASES, Asked

SET = Path(__file__).parents[2] / "assets" / "sets" / "blueprint"
SUBJECTS = ("cat face", "donut", "rocket", "rabbit face", "panda", "butterfly")
DRAWING_STEPS, SEED = 10, 20
PLAIN = 2  # pictures that are drawn without the LoRA too
STEPS = {"demo-sdxl": 160, "demo-flux": 70}  # ratios of 0.24 and 0.08 at weight 1


def trained(base: str, images: ImageSet, folder: Path) -> tuple[Adapter, Sample]:
    """A LoRA of the set as its exported file holds it, and the preview of its last step."""
    config = TrainConfig(base=base, images=images.name, steps=STEPS[base], learning_rate=2e-3, rank=16, batch_size=4, seed=1, sample_every=STEPS[base])

    def show(c: Components, step: int, target: Path):
        return preview(c, [f"{SUBJECTS[0]}, {images.trigger}"], step, target, SEED, DRAWING_STEPS)

    events = list(train(config, sources.find(base), images, folder, folder / "cache", requests=Asked(), preview=show, device="cpu"))
    last = next(event for event in reversed(events) if isinstance(event, Checkpoint))
    sample = next(event for event in events if isinstance(event, Sample))
    file = folder / "style.safetensors"
    formats.write(checkpoint.adapter(folder / last.path), file, format="kohya", dtype="fp16")
    return formats.read(file), sample


def drawn(c: Components, images: ImageSet, rows: list[tuple[Adapter, float]], folder: Path, n: int = len(SUBJECTS)) -> list[Image.Image]:
    found = []
    for i, subject in enumerate(SUBJECTS[:n]):
        config = GenerateConfig(base=c.base.name, prompt=f"{subject}, {images.trigger}", seed=SEED + i, steps=DRAWING_STEPS)
        for event in generate(c, rows, config, folder / str(i), requests=Asked(), names=["style"][: len(rows)]):
            if isinstance(event, Drawn):
                found.append(Image.open(folder / str(i) / event.path).convert("RGB"))
    return found


@pytest.mark.parametrize("base", BASES)
def test_a_style_comes_out_as_its_weight_says(base: str, loaded: Callable[[str], Components], tmp_path: Path) -> None:
    images = read_set(SET)
    shown = " ".join(picture.caption for picture in images.pictures)
    assert not [subject for subject in SUBJECTS if subject in shown], "the subjects must be new to the LoRA"
    adapter, sample = trained(base, images, tmp_path)
    c = loaded(base)
    target = describe([Image.open(picture.path) for picture in images.pictures])

    plain = drawn(c, images, [], tmp_path / "base", PLAIN)
    weighted = {weight: drawn(c, images, [(adapter, weight)], tmp_path / str(weight)) for weight in (0.0, 0.5, 1.0)}
    assert [image.tobytes() for image in weighted[0.0][:PLAIN]] == [image.tobytes() for image in plain]

    distance = {weight: frechet(describe(pictures), target) for weight, pictures in weighted.items()}
    print(base, {weight: round(value, 3) for weight, value in distance.items()})
    assert distance[0.0] > distance[0.5] > distance[1.0]
    assert distance[1.0] <= 0.35 * distance[0.0], distance

    seen, meant = (numpy.asarray(image.convert("RGB"), dtype=float) for image in (Image.open(tmp_path / sample.path), weighted[1.0][0]))
    assert numpy.abs(seen - meant).mean() < 4, "the last preview and the exported file at weight 1 draw the same picture up to rounding"
