"""FLUX.1 module names: diffusers' transformer <-> the names of its makers, who keep q, k, v (and the MLP) in one matrix. Pure.

Table: kohya-ss/sd-scripts, networks/convert_flux_lora.py; black-forest-labs/flux, model.py.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PREFIXES = {"lora_te1": "text_encoder", "lora_te3": "text_encoder_2", "lora_te2": "text_encoder_2"}
TEXT = re.compile(
    r"text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
    r"|encoder\.block\.\d+\.layer\.(0\.SelfAttention\.[qkvo]|1\.DenseReluDense\.(wi_0|wi_1|wo))"
)

_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
}
_OUTSIDE_BACK = {value: key for key, value in _OUTSIDE.items()}
_BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")
_BLOCK_BACK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)")
SWAPPED = "norm_out.linear"  # its rows are (scale, shift) here and (shift, scale) there


@dataclass(frozen=True)
class Slot:
    """Where a diffusers module lies in a module of the makers: part `index` of `parts`, by rows."""

    name: str
    parts: tuple[str, ...]
    index: int


def is_module(path: str) -> bool:
    """Whether a FLUX.1 transformer has a linear of that diffusers name."""
    try:
        slot(path)
    except KeyError:
        return False
    return True


def slot(path: str) -> Slot:
    """The place of a diffusers module. Raises KeyError if FLUX.1 has none such."""
    if path in _OUTSIDE_BACK:
        return Slot(_OUTSIDE_BACK[path], (path,), 0)
    found = _BLOCK.fullmatch(path)
    if found is None:
        raise KeyError(path)
    single, number, inner = found.groups()
    for name, parts in (_SINGLE if single else _DOUBLE).items():
        if inner in parts:
            prefix = path[: -len(inner)]
            block = f"{'single' if single else 'double'}_blocks.{number}.{name}"
            return Slot(block, tuple(prefix + part for part in parts), parts.index(inner))
    raise KeyError(path)


def parts_of(name: str) -> tuple[str, ...]:
    """The diffusers modules, in row order, of a module of the makers. Raises KeyError if there is none such."""
    if name in _OUTSIDE:
        return (_OUTSIDE[name],)
    found = _BLOCK_BACK.fullmatch(name)
    if found is None:
        raise KeyError(name)
    kind, number, inner = found.groups()
    prefix = f"{'single_' if kind == 'single' else ''}transformer_blocks.{number}."
    return tuple(prefix + part for part in (_SINGLE if kind == "single" else _DOUBLE)[inner])


def rows(name: str, total: int, width: int) -> list[int]:
    """Rows of each part in a fused weight (total, width): thirds, or width, width, width and the MLP."""
    n = len(parts_of(name))
    if n == 4:
        return [width, width, width, total - 3 * width]
    return [total // n] * n


def swap_halves(rows_first: "Tensor") -> "Tensor":
    """(shift, scale) <-> (scale, shift)."""
    import torch

    first, second = rows_first.chunk(2)
    return torch.cat([second, first])
