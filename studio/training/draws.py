"""Random draws that depend on (seed, batch, item) alone, so that a resumed run equals one that never stopped.

They are made on the CPU: the same seed gives the same noise on every device.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    level: float  # uniform in [0, 1), becomes the noise level
    mirrored: bool
    captionless: bool
    _generator: torch.Generator

    @property
    def key(self) -> int:
        """What else is drawn for this item follows from this number."""
        return self._generator.initial_seed()

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        """Normal noise; call once."""
        return torch.randn(shape, generator=self._generator)

    def another(self, word: str) -> torch.Generator:
        """A generator of its own for what else is drawn of this item: new draws leave the old ones as they were."""
        digest = hashlib.blake2b(f"{word} {self.key}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)

    def choice(self, word: str, n: int) -> int:
        """One of n, each as likely; no draw where there is no choice."""
        return int(torch.randint(n, (), generator=self.another(word))) if n > 1 else 0


def draw(seed: int, batch: int, item: int, *, flip: bool, caption_dropout: float) -> Draw:
    """All chance of one item in one batch, counted from the start of training."""
    digest = hashlib.blake2b(f"draw {seed} {batch} {item}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    level, mirror, caption = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    return Draw(level, flip and mirror < 0.5, caption < caption_dropout, generator)


def fixed(seed: int, picture: str, number: int, level: float) -> Draw:
    """Noise for looking at a picture always in the same way; no draw of training equals it."""
    digest = hashlib.blake2b(f"fixed {seed} {picture} {number}".encode(), digest_size=8).digest()
    return Draw(level, False, False, torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1))
