"""Vectors of new words in files: bundled with a LoRA, or one file a word for programs that look for such files."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from studio import metadata as headers
from studio.errors import FormatError
from studio.lora.adapter import Adapter

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T5 = {"t5": "t5xxl"}  # what a bundle calls it -> what ComfyUI looks for in a file of its own


def write(path: Path, adapter: Adapter, word: str, dtype: "torch.dtype", words: Mapping[str, str]) -> None:
    """The file of one word: `clip_l`, `clip_g`, `t5xxl` (n, D), as A1111, Forge and ComfyUI read them; diffusers takes the tensors one by one.

    words: what the header says. Raises FormatError if a number is too large for the number format.
    """
    from safetensors.torch import save

    tensors = {T5.get(name, name): rows.detach().to("cpu", dtype).contiguous() for name, rows in adapter.embeddings[word].items()}
    if not all(bool(rows.isfinite().all()) for rows in tensors.values()):
        raise FormatError(f"{path.name}: the vectors of {word} hold values that {str(dtype).removeprefix('torch.')} cannot; export as fp32")
    headers.write_atomic(path, [save(tensors, dict(words))])


def difference(one: "Mapping[str, Mapping[str, Tensor]]", other: "Mapping[str, Mapping[str, Tensor]]") -> tuple[float, str]:
    """The largest relative distance of any vectors, and whose; 1 for such that only one of the two has."""
    worst, where = 0.0, ""
    for word in sorted({*one, *other}):
        for name in sorted({*one.get(word, {}), *other.get(word, {})}):
            here, there = one.get(word, {}).get(name), other.get(word, {}).get(name)
            distance = 1.0 if here is None or there is None or here.shape != there.shape else _distance(here, there)
            if distance >= worst:
                worst, where = distance, f"the word {word} ({name})"
    return worst, where


def _distance(one: "Tensor", other: "Tensor") -> float:
    norm = max(float(one.double().norm()), float(other.double().norm()))
    return float((one.double() - other.double()).norm()) / norm if norm else 0.0
