"""A demo base as the project ships it: fp16, the denoiser's matrices in float8, which halves it and changes no picture visibly."""

from pathlib import Path
from typing import Any

import torch


def store(pipeline: Any, folder: Path, denoiser: str) -> Path:
    """Save the pipeline; `from_pretrained(folder, torch_dtype=torch.float32)` widens everything again."""
    from safetensors.torch import load_file, save_file

    pipeline.to(device="cpu", dtype=torch.float16).save_pretrained(folder)
    file = folder / denoiser / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({name: stored(weight) for name, weight in weights.items()}, file, metadata={"format": "pt"})
    return folder


def stored(weight: torch.Tensor) -> torch.Tensor:
    """Matrices in float8_e4m3, which holds magnitudes from 2**-9 to 448; vectors, biases and norms as they are."""
    return weight.to(torch.float8_e4m3fn) if weight.ndim > 1 else weight
