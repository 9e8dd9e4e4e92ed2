"""Why a job ended early, in one sentence, with what to do and what was kept."""

import errno
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studio.errors import Interrupted, StudioError
from studio.events import Checkpoint, Failed

# How torch and the libraries below it begin what they say of a device that failed
DEVICE_ERRORS = ("CUDA error:", "HIP error:", "CUBLAS_STATUS_EXECUTION_FAILED", "CUDNN_STATUS_EXECUTION_FAILED", "XPU error:")


def explain(error: BaseException, settings: Mapping[str, Any], folder: Path, checkpoints: Sequence[Checkpoint]) -> Failed:
    """The event for an error that ended a job. The traceback belongs into log.txt, not here."""
    held = kept(checkpoints)
    if isinstance(error, Interrupted):
        return Failed(message=str(error), remedy=_again(held), kept=held, error="Interrupted")
    if _disk_full(error):
        free = shutil.disk_usage(folder).free / 1e6
        what = str(error) if isinstance(error, StudioError) else "the disk is full"
        return Failed(message=f"{what} ({free:.1f} MB free)", remedy=f"free some space, then {_again(held)}", kept=held, error="RunError")
    if isinstance(error, StudioError):
        kind = next(kind for kind in type(error).__mro__ if kind.__module__ == StudioError.__module__)  # a room may refine a shared error
        return Failed(message=str(error), kept=held, error=kind.__name__)
    if _out_of_memory(error):
        return Failed(
            message="the device ran out of memory", remedy=lower_setting(settings, gpu=not isinstance(error, MemoryError)), kept=held, error="RunError"
        )
    if device_lost(error):
        message = f"the device stopped answering ({_first_line(error)[:200]}); the next job gets a new process"
        return Failed(message=message, remedy=f"{_again(held)}; if it happens again, look into the driver's log", kept=held, error="RunError")
    return Failed(
        message=f"{type(error).__name__}: {_first_line(error)[:300]}", remedy="see log.txt of the job for the whole report", kept=held, error="RunError"
    )


def kept(checkpoints: Sequence[Checkpoint]) -> str:
    """What a training run that stops now leaves behind, in words."""
    if not checkpoints:
        return ""
    return f"the checkpoint of step {checkpoints[-1].step} is kept; it can be resumed from and exported"


def lower_setting(settings: Mapping[str, Any], gpu: bool = True) -> str:
    """The next setting to lower when memory does not suffice, cheapest in quality first. gpu: whether it is the memory of one."""
    batch, size, rank = (settings.get(name) or 0 for name in ("batch_size", "resolution", "rank"))
    if batch > 1:
        half = batch // 2
        accumulation = -(-batch * (settings.get("gradient_accumulation") or 1) // half)
        return f"set batch_size to {half} with gradient_accumulation {accumulation}; the result stays the same, it only takes longer"
    if size and not settings.get("gradient_checkpointing"):
        return "turn gradient_checkpointing on; the result stays the same, it only takes longer"
    waiting = settings.get("block_offload") or 0.0
    if gpu and "block_offload" in settings and waiting < 1 and not settings.get("fp8_products"):
        return f"set block_offload to {min(1.0, waiting + 0.5):g}; the result stays the same, it only takes longer"
    if size > 512:
        return f"set resolution to {max(512, size * 3 // 4 // 64 * 64)}"
    if rank > 8:
        return f"set rank to {rank // 2}"
    width, height = settings.get("width") or 0, settings.get("height") or 0
    if min(width, height) > 512:
        return f"set the size to {width * 3 // 4 // 64 * 64}x{height * 3 // 4 // 64 * 64}"
    return "close other programs that use the device, or set precision to bf16"


def _again(held: str) -> str:
    return "resume goes on from there" if held else "retry starts it again"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def _disk_full(error: BaseException | None) -> bool:
    """Whether this error, or one behind it, says that the disk or its quota is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if type(error).__name__ == "SafetensorError" and "No space left" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def device_lost(error: BaseException) -> bool:
    """Whether the device, or this process' hold on it, is gone: whatever is asked of it from now on fails too."""
    text = str(error)
    named = type(error).__name__ == "AcceleratorError" or (isinstance(error, RuntimeError) and any(word in text for word in DEVICE_ERRORS))
    return named and not _out_of_memory(error)


def _out_of_memory(error: BaseException) -> bool:
    # By name, because this module is also read where torch is not
    return isinstance(error, MemoryError) or (type(error).__name__ in ("OutOfMemoryError", "AcceleratorError") and "out of memory" in str(error))


def worker_died(code: int | None, checkpoints: Sequence[Checkpoint]) -> tuple[str, str, str]:
    """Message, remedy and what was kept for a worker that is gone without a word. `code`: its exit status if known."""
    if code is not None and code == -9:
        message = "the worker was killed by the system, most likely because memory ran out"
    elif code is not None and code < 0:
        message = f"the worker ended by signal {-code}"
    else:
        message = "the worker ended unexpectedly"
    remedy = "resume goes on from there" if checkpoints else "retry starts it again"
    return message, remedy, kept(checkpoints)
