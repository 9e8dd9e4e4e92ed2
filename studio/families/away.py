"""Which blocks of a model stay in main memory, and what is then left on the device: sizes only, no tensors.

Blocks are the repeated ones: residual and transformer blocks of a U-Net, transformer blocks of FLUX.1 and T5. While blocks are away, a ring
of buffers on the device holds the one that computes and the ones that come next; each is as large as the largest block that is away.
"""

import re
from collections.abc import Mapping

SLOTS = 2  # buffers of the ring, at least
ROOMY = 3  # of them where there is room: one block comes while blocks that stay compute between two that are away
AT_ONCE = 8  # captions that pass through text encoders at once whose blocks come for each pass
ALIGNMENT = 256  # bytes; where each tensor begins in a buffer
_BLOCK = re.compile(r"(?:.+\.)?(?:resnets|transformer_blocks|single_transformer_blocks|encoder\.block)\.\d+")


def block_of(name: str) -> str:
    """The block that a tensor or module of this name is in; empty if in none."""
    match = _BLOCK.match(name)
    return match.group() if match and name[match.end() :].startswith(".") else ""


def blocks(tensors: Mapping[str, int]) -> dict[str, int]:
    """Bytes of each block in a buffer, in the order of the tensors. tensors: name within the model -> bytes."""
    found: dict[str, int] = {}
    for name, size in tensors.items():
        block = block_of(name)
        if block:
            found[block] = found.get(block, 0) + aligned(size)
    return found


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def chosen(sizes: Mapping[str, int], share: float) -> list[str]:
    """The blocks that are away: that share of their bytes, evenly spread, so that each has time to come while others compute."""
    found, passed, away = [], 0, 0
    for name, size in sizes.items():
        passed += size
        if away + size / 2 <= share * passed and share > 0:
            found.append(name)
            away += size
    return found


def on_device(tensors: Mapping[str, int], share: float, slots: int = SLOTS) -> int:
    """Bytes of a frozen model that lie on the device while that share of its blocks is away, the ring among them."""
    sizes = blocks(tensors)
    away = [sizes[name] for name in chosen(sizes, share)]
    return sum(map(aligned, tensors.values())) - sum(away) + min(slots, len(away)) * max(away, default=0)
