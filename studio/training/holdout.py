"""Which pictures are held out: by their contents alone, so that every run and every resume holds out the same ones."""

import hashlib
from collections.abc import Sequence

from studio.errors import SettingsError


def chosen(hashes: Sequence[str], fraction: float) -> frozenset[int]:
    """Numbers of the pictures that are never trained on, by the hashes of their contents.

    The share is rounded, to one picture at least; copies of one picture stay together, or training would see what it is
    measured by. Raises SettingsError if nothing would be left to train on.
    """
    if fraction <= 0:
        return frozenset()
    order = sorted(set(hashes), key=_place)
    n = max(1, round(fraction * len(order)))
    if n >= len(order):
        raise SettingsError(f"validation_fraction {fraction:g} of {len(order)} different pictures leaves none to train on; add pictures, or set it to 0")
    held = set(order[:n])
    return frozenset(i for i, found in enumerate(hashes) if found in held)


def _place(found: str) -> str:
    """Independent of other uses of the same hash, such as the order of files."""
    return hashlib.sha256(f"held out {found}".encode()).hexdigest()
