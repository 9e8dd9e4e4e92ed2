"""Tensors of single-file models <-> tensors of diffusers' parts: names first, and the few that are also stored in another shape. Pure.

Names: CompVis latent-diffusion for the VAE, mlfoundations/open_clip for SDXL's second encoder, black-forest-labs/flux for FLUX.1.
"""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from studio.families import flux_names, sdxl_names

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = Mapping[str, Tensor]

UNET, VAE, CLIP, OPEN_CLIP = "model.diffusion_model.", "first_stage_model.", "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
MARKERS = ("v_pred", "ztsnr")
VAE_LEVELS = 4

_VAE = (
    (r"encoder\.down\.(\d)\.block\.(\d)", r"encoder.down_blocks.\1.resnets.\2"),
    (r"encoder\.down\.(\d)\.downsample\.conv", r"encoder.down_blocks.\1.downsamplers.0.conv"),
    (r"decoder\.up\.(\d)\.block\.(\d)", r"decoder.up_blocks.\1.resnets.\2"),
    (r"decoder\.up\.(\d)\.upsample\.conv", r"decoder.up_blocks.\1.upsamplers.0.conv"),
    (r"(en|de)coder\.mid\.block_1", r"\1coder.mid_block.resnets.0"),
    (r"(en|de)coder\.mid\.block_2", r"\1coder.mid_block.resnets.1"),
    (r"(en|de)coder\.mid\.attn_1", r"\1coder.mid_block.attentions.0"),
    (r"(en|de)coder\.norm_out", r"\1coder.conv_norm_out"),
)
_VAE_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm"}
_OPEN_CLIP = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2", "attn.out_proj": "self_attn.out_proj"}
_OPEN_CLIP_OUTSIDE = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_FLUX_NORMS = {
    "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
    "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
    "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
    "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
    "norm.query_norm.scale": "attn.norm_q.weight",
    "norm.key_norm.scale": "attn.norm_k.weight",
}


def unet_from_ldm(tensors: "Tensors") -> "dict[str, Tensor]":
    return {_suffixed(sdxl_names.from_ldm, name): tensor for name, tensor in tensors.items()}


def unet_to_ldm(tensors: "Tensors") -> "dict[str, Tensor]":
    return {_suffixed(sdxl_names.to_ldm, name): tensor for name, tensor in tensors.items()}


def vae_from_ldm(tensors: "Tensors") -> "dict[str, Tensor]":
    """Attention is 1x1 convolutions there and linear layers here; the decoder's levels are counted from the other end."""
    found = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _VAE:
            name = re.sub("^" + pattern, replacement, name)
        name = _flipped(name).replace("nin_shortcut", "conv_shortcut")
        head, attention, rest = name.partition("attentions.0.")
        if attention:
            inner, _, kind = rest.rpartition(".")
            name = f"{head}{attention}{_VAE_ATTENTION[inner]}.{kind}"
            tensor = tensor.flatten(1) if tensor.dim() == 4 else tensor
        found[name] = tensor
    return found


def vae_to_ldm(tensors: "Tensors") -> "dict[str, Tensor]":
    found = {}
    inner_names = {value: key for key, value in _VAE_ATTENTION.items()}
    for name, tensor in tensors.items():
        head, attention, rest = name.partition("attentions.0.")
        if attention:
            inner, _, kind = rest.rpartition(".")
            name = f"{head}{attention}{inner_names[inner]}.{kind}"
            tensor = tensor[:, :, None, None] if tensor.dim() == 2 else tensor
        name = _flipped(name).replace("conv_shortcut", "nin_shortcut")
        for pattern, replacement in _VAE:
            name = re.sub("^" + _reversed_pattern(replacement), _reversed_replacement(pattern), name)
        found[name] = tensor
    return found


def open_clip_to_hf(tensors: "Tensors") -> "dict[str, Tensor]":
    """q, k and v are one matrix there; the projection is stored transposed."""
    found = {}
    for name, tensor in tensors.items():
        if name in _OPEN_CLIP_OUTSIDE:
            found[_OPEN_CLIP_OUTSIDE[name]] = tensor
        elif name == "text_projection":
            found["text_projection.weight"] = tensor.T.contiguous()
        elif block := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name):
            layer = f"text_model.encoder.layers.{block[1]}."
            inner, _, kind = block[2].rpartition(".")
            if inner in _OPEN_CLIP:
                found[f"{layer}{_OPEN_CLIP[inner]}.{kind}"] = tensor
            else:
                kind = block[2].removeprefix("attn.in_proj_")
                found |= {f"{layer}self_attn.{part}_proj.{kind}": piece for part, piece in zip("qkv", tensor.chunk(3), strict=True)}
        elif name not in ("logit_scale", "text_projection.weight"):
            raise KeyError(name)
        elif name == "text_projection.weight":
            found[name] = tensor
    return found


def hf_to_open_clip(tensors: "Tensors") -> "dict[str, Tensor]":
    import torch

    outside = {value: key for key, value in _OPEN_CLIP_OUTSIDE.items()}
    inside = {value: key for key, value in _OPEN_CLIP.items()}
    found = {}
    for name, tensor in tensors.items():
        block = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if name in outside:
            found[outside[name]] = tensor
        elif name == "text_projection.weight":
            found["text_projection"] = tensor.T.contiguous()
        elif block and block[2] in inside:
            found[f"transformer.resblocks.{block[1]}.{inside[block[2]]}.{block[3]}"] = tensor
        elif block and block[2] == "self_attn.q_proj":
            parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            found[f"transformer.resblocks.{block[1]}.attn.in_proj_{block[3]}"] = torch.cat(parts)
        elif not block or block[2] not in ("self_attn.k_proj", "self_attn.v_proj"):
            raise KeyError(name)
    return found


def flux_from_original(tensors: "Tensors") -> "dict[str, Tensor]":
    """Fused matrices come apart by rows; the last modulation has its halves the other way round. Works on a part of the tensors too."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        block = re.fullmatch(r"(double|single)_blocks\.(\d+)\.(.+)", name)
        if block and block[3] in _FLUX_NORMS:
            found[f"{'single_' if block[1] == 'single' else ''}transformer_blocks.{block[2]}.{_FLUX_NORMS[block[3]]}"] = tensor
            continue
        module, _, kind = name.rpartition(".")
        parts = flux_names.parts_of(module)
        if parts == (flux_names.SWAPPED,):
            tensor = flux_names.swap_halves(tensor)
        # q, k and v are as wide as the model, the MLP beside them is four times that.
        pieces = tensor.split(flux_names.rows(module, tensor.shape[0], tensor.shape[0] // 7))
        found |= {f"{part}.{kind}": piece for part, piece in zip(parts, pieces, strict=True)}
    return found


def flux_to_original(tensors: "Tensors") -> "dict[str, Tensor]":
    import torch

    norms = {(key.startswith("norm."), value): key for key, value in _FLUX_NORMS.items()}
    found = {}
    for name, tensor in tensors.items():
        block = re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.(.+)", name)
        if block and (bool(block[1]), block[3]) in norms:
            found[f"{'single' if block[1] else 'double'}_blocks.{block[2]}.{norms[bool(block[1]), block[3]]}"] = tensor
            continue
        module, _, kind = name.rpartition(".")
        slot = flux_names.slot(module)
        if slot.index == 0:
            whole = torch.cat([tensors[f"{part}.{kind}"] for part in slot.parts])
            found[f"{slot.name}.{kind}"] = flux_names.swap_halves(whole) if module == flux_names.SWAPPED else whole
    return found


def _suffixed(rename: Callable[[str], str], name: str) -> str:
    module, _, kind = name.rpartition(".")
    return f"{rename(module)}.{kind}"


def _flipped(name: str) -> str:
    return re.sub(r"^decoder\.up_blocks\.(\d)", lambda found: f"decoder.up_blocks.{VAE_LEVELS - 1 - int(found[1])}", name)


def _reversed_pattern(replacement: str) -> str:
    return re.escape(replacement).replace(r"\\1coder", "(en|de)coder").replace(r"\\1", r"(\d)").replace(r"\\2", r"(\d)")


def _reversed_replacement(pattern: str) -> str:
    text = pattern.replace("(en|de)coder", r"\1coder").replace(r"\.", ".")
    return text.replace(r"(\d)", r"\1", 1).replace(r"(\d)", r"\2", 1)
