"""What a run will need, compared with what there is, before its first step: refused with numbers instead of found out hours later."""

import math
import shutil
from pathlib import Path

import torch

from studio.config import TrainConfig
from studio.container import read_header
from studio.errors import RunError, StudioError
from studio.families import away, quantised
from studio.families.base import Base

ADAPTER_BYTES, MEMORY_BYTES = 4, 8  # a trained number in fp32, and the two moments the optimizer keeps of it
AVERAGE_BYTES = 8  # the moving average in fp32, and the weights that the adapter then does not hold
MARGIN = 1.1  # headers, events, previews, the exported file
LEAST = 2**24  # what any run writes


def disk(folder: Path, parameters: int, config: TrainConfig, done: int) -> None:
    """Raise RunError unless the checkpoints still to come fit on the disk; one more than is kept stands there while it is saved."""
    steps = config.steps or 0
    adapters = max(1, math.ceil((steps - done) / config.save_every) if config.save_every else 1)
    looks = math.ceil((steps - done) / config.validation_every) if config.validation_fraction and config.keep_best else 0
    adapters += looks  # every one may be the best so far
    anchors = steps // config.anchor_every - done // config.anchor_every if config.anchor_every else 0
    whole = min(adapters, config.keep_checkpoints + 1 + anchors + (looks > 0))
    beside = MEMORY_BYTES + (AVERAGE_BYTES if config.ema_decay else 0)
    need = int(MARGIN * parameters * (ADAPTER_BYTES * adapters + beside * whole)) + LEAST
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    if free < need:
        each = parameters * (ADAPTER_BYTES + beside)
        raise RunError(
            f"{folder}: {need / 1e6:.0f} MB are needed for {adapters} checkpoints of up to {each / 1e6:.0f} MB and only {free / 1e6:.0f} MB are free; "
            "free some space, or raise save_every"
        )


def memory(base: Base, dtype: torch.dtype, device: torch.device, format: str = "full", share: float = 0.0) -> None:
    """Raise RunError if the frozen denoiser alone is larger than what the device has; silent where either is unknown.

    share: of its blocks that wait in main memory.
    """
    bits = quantised.BITS.get(format, 8 * dtype.itemsize)
    need, have = away.on_device({name: int(n * bits / 8) for name, n in numbers(base).items()}, share), free_memory(device)
    if have and need > have:
        raise RunError(
            f"{base.name} needs {need / 1e9:.1f} GB on {device} for its weights alone and {have / 1e9:.1f} GB are free; "
            "close other programs that use it, choose precision bf16, a base_format of fewer bits or a larger block_offload, or a smaller base"
        )


def weights(base: Base) -> int:
    """Numbers in the denoiser's files; 0 if the base is not a folder of parts."""
    return sum(numbers(base).values())


def numbers(base: Base) -> dict[str, int]:
    """How many numbers each tensor of the denoiser has, by the headers of its files; empty if the base is not a folder of parts."""
    folders = [base.path / name for name in ("unet", "transformer") if (base.path / name).is_dir()]
    if not folders:
        return {}
    try:
        headers = [read_header(path) for path in folders[0].glob("*.safetensors") if ".fp16." not in path.name]
    except (StudioError, OSError):
        return {}  # loading says what is wrong with it
    return {name: math.prod(shape) for header in headers for name, shape in header.shapes.items()}


def free_memory(device: torch.device) -> int:
    """Bytes a new model may take; 0 if nobody can say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu":
        import psutil

        return psutil.virtual_memory().available + psutil.swap_memory().free
    return 0
