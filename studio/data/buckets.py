"""Aspect buckets, crop plan and epoch order: pure functions of sizes and a seed.

A bucket is a training size (width, height). Pictures are only ever made smaller: one that cannot fill the wanted area
trains at its own size, rounded down to what the base model can take.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from studio.errors import ImageError

Size = tuple[int, int]  # width, height in pixels

WIDEST = 8  # a longer side than eight times the shorter is cropped away where the picture is large enough


@dataclass(frozen=True)
class Crop:
    """How one picture becomes its bucket: resize to `resized`, then cut the bucket out at `left`, `top`."""

    original: Size
    resized: Size
    left: int
    top: int
    bucket: Size
    small: bool  # the picture has fewer pixels than the wanted area

    @property
    def kept(self) -> float:
        """Share of the picture that stays, in (0, 1]."""
        return self.bucket[0] * self.bucket[1] / (self.resized[0] * self.resized[1])

    def sizes(self, flip: bool = False) -> tuple[int, int, int, int, int, int]:
        """Size conditioning in the order of SDXL: original height, width, crop top, left, target height, width."""
        left = self.resized[0] - self.bucket[0] - self.left if flip else self.left
        return (self.original[1], self.original[0], self.top, left, self.bucket[1], self.bucket[0])


def table(area: int, multiple: int) -> list[Size]:
    """For every width the tallest size of at most `area` pixels, in steps of a sixteenth of the square's side.

    Finer steps would keep a little more of each picture and leave few pictures of one size to share a batch.
    """
    multiple = max(multiple, math.isqrt(area) // 16 // multiple * multiple)
    narrow = max(multiple, math.ceil(math.sqrt(area / WIDEST) / multiple) * multiple)
    wide = max(multiple, math.floor(math.sqrt(area * WIDEST) / multiple) * multiple)
    return [(width, height) for width in range(narrow, wide + 1, multiple) if (height := area // width // multiple * multiple) >= multiple]


def crop(size: Size, area: int, multiple: int) -> Crop:
    """The bucket that keeps most of a picture without enlarging it, and the centred cut.

    Raises ImageError if a side is shorter than `multiple`.
    """
    width, height = size
    if width < multiple or height < multiple:
        raise ImageError(f"{width}x{height} pixels is too small: this base needs {multiple} pixels on each side; use a larger copy or remove it")
    small = width * height < area
    fits = [] if small else [bucket for bucket in table(area, multiple) if bucket[0] <= width and bucket[1] <= height]
    if not fits:
        fits = [_own_size(size, area, multiple)]
    return max((_cut(size, bucket, small) for bucket in fits), key=lambda c: (round(c.kept, 3), c.bucket[0] * c.bucket[1], c.bucket))


def _own_size(size: Size, area: int, multiple: int) -> Size:
    """The picture's size rounded down; the longer side shortened if that is still more than `area`."""
    width, height = (side // multiple * multiple for side in size)
    if width >= height:
        return max(multiple, min(width, area // height // multiple * multiple)), height
    return width, max(multiple, min(height, area // width // multiple * multiple))


def _cut(size: Size, bucket: Size, small: bool) -> Crop:
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    resized = (max(bucket[0], round(size[0] * scale)), max(bucket[1], round(size[1] * scale)))
    return Crop(size, resized, (resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2, bucket, small)


def plan(sizes: Mapping[str, Size], area: int, multiple: int) -> dict[str, Crop]:
    """A crop for every named picture. Raises ImageError naming the first that is too small."""
    crops = {}
    for name, size in sizes.items():
        try:
            crops[name] = crop(size, area, multiple)
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from None
    return crops


def count(crops: Mapping[str, Crop]) -> dict[str, int]:
    """Pictures per bucket, largest group first, as `WIDTHxHEIGHT`."""
    return {f"{width}x{height}": n for (width, height), n in Counter(c.bucket for c in crops.values()).most_common()}


@dataclass(frozen=True)
class Item:
    """One appearance of a picture within an epoch. `number` is its identity for random draws."""

    number: int
    picture: int


@dataclass(frozen=True)
class Order:
    """The endless sequence of batches, addressed by number so that a run can go on from anywhere.

    Every epoch shows each picture `repeats` times, in batches of one bucket; the last batch of a bucket may be short.
    A batch size beyond a bucket's items gives one batch of them all.
    """

    buckets: tuple[Size, ...]  # of each picture
    batch_size: int
    repeats: tuple[int, ...]  # of each picture
    seed: int
    _epochs: dict[int, list[list[Item]]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def items(self) -> int:
        return sum(self.repeats)

    @property
    def batches_per_epoch(self) -> int:
        sizes: Counter[Size] = Counter()
        for bucket, repeats in zip(self.buckets, self.repeats, strict=True):
            sizes[bucket] += repeats
        return sum(math.ceil(n / self.batch_size) for n in sizes.values())

    def batch(self, number: int) -> list[Item]:
        """The batch that is `number`-th since the start of training, counted from 0."""
        epoch, position = divmod(number, self.batches_per_epoch)
        if epoch not in self._epochs:
            self._epochs.clear()
            self._epochs[epoch] = self.epoch(epoch)
        return self._epochs[epoch][position]

    def epoch(self, epoch: int) -> list[list[Item]]:
        """All batches of an epoch: a permutation that depends on the seed and the epoch alone."""
        draw = random.Random(f"order {self.seed} {epoch}")
        groups: dict[Size, list[Item]] = {}
        pictures = (picture for picture, repeats in enumerate(self.repeats) for _ in range(repeats))
        for number, picture in enumerate(pictures):
            groups.setdefault(self.buckets[picture], []).append(Item(number, picture))
        batches = []
        for items in groups.values():
            draw.shuffle(items)
            batches += [items[start : start + self.batch_size] for start in range(0, len(items), self.batch_size)]
        draw.shuffle(batches)
        return batches

    def steps(self, epochs: int, accumulation: int) -> int:
        """Optimizer steps that show at least `epochs` whole epochs."""
        return math.ceil(epochs * self.batches_per_epoch / accumulation)


def order(crops: Sequence[Crop], batch_size: int, repeats: int | Sequence[int], seed: int) -> Order:
    """repeats: of every picture, or of each."""
    each = [repeats] * len(crops) if isinstance(repeats, int) else repeats
    return Order(tuple(c.bucket for c in crops), batch_size, tuple(each), seed)
