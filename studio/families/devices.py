"""Number formats by device: one rule for training and generation."""

from typing import TYPE_CHECKING

from studio.config import Precision

if TYPE_CHECKING:
    import torch


def resolve_dtype(precision: Precision, device: "torch.device") -> "torch.dtype":
    """The number format of a frozen base; auto is bf16 on a CUDA GPU that computes in it, else fp32."""
    import torch

    if precision == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
