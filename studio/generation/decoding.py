"""Decode large pictures in tiles, but only those that do not fit: tiles cost time and can show at their edges."""

from collections.abc import Iterable
from typing import Any

from studio.families.base import Components

PIXEL_BYTES = 5000  # of the VAE in fp32 while it decodes: 4.77 GiB at 1024 x 1024, measured; half of it in 16 bits
SPARE = 0.9  # of the free memory
SIDES = (1024, 768, 512, 256)  # of tiles, in pixels


def fit(c: Components, sizes: Iterable[tuple[int, int]]) -> str:
    """Set the VAE up for pictures of these sizes, in pixels; in words how, empty if they are decoded whole."""
    vae: Any = c.parts["vae"]
    largest = max((width * height for width, height in sizes), default=0)
    bytes_each = PIXEL_BYTES * next(vae.parameters()).element_size() / 4
    free = _free(c) * SPARE
    vae.use_tiling = largest * bytes_each > free
    if not vae.use_tiling:
        return ""
    side = next((side for side in SIDES if side * side * bytes_each <= free), SIDES[-1])
    vae.tile_sample_min_size = side
    vae.tile_latent_min_size = side // 2 ** (len(vae.config.block_out_channels) - 1)
    return f"decoded in tiles of {side} pixels: whole it needs {largest * bytes_each / 2**30:.1f} GiB, and {free / 2**30:.1f} are free"


def facts(c: Components, sizes: Iterable[tuple[int, int]]) -> dict[str, str]:
    """`fit`, and what is told of it with a job."""
    words = fit(c, sizes)
    return {"vae": words} if words else {}


def _free(c: Components) -> float:
    """Bytes that the device can still give, those that the allocator holds unused included."""
    import torch

    if c.device.type == "cuda":
        unused = torch.cuda.memory_reserved(c.device) - torch.cuda.memory_allocated(c.device)
        return torch.cuda.mem_get_info(c.device)[0] + unused
    import psutil

    return psutil.virtual_memory().available
