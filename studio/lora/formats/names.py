"""From the module name in a file to the canonical module path. Pure: names and shapes in, names out."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from studio.families import flux_names, sdxl_names

# Every segment that may hold an underscore or stand between underscores; longest first when matched.
_WORDS = """
input_blocks middle_block output_blocks transformer_blocks down_blocks up_blocks mid_block attentions resnets downsamplers upsamplers
attn1 attn2 to_q to_k to_v to_out ff net proj proj_in proj_out in_layers out_layers emb_layers skip_connection op conv time_embed label_emb out
conv1 conv2 conv_shortcut time_emb_proj time_embedding add_embedding linear_1 linear_2 conv_in conv_out
text_model encoder layers self_attn q_proj k_proj v_proj out_proj mlp fc1 fc2 text_projection
block layer SelfAttention q k v o DenseReluDense wi_0 wi_1 wo
double_blocks single_blocks img_attn txt_attn qkv img_mlp txt_mlp img_mod txt_mod lin linear1 linear2 modulation img_in txt_in time_in vector_in
guidance_in in_layer out_layer final_layer adaLN_modulation linear
single_transformer_blocks attn add_q_proj add_k_proj add_v_proj to_add_out ff_context proj_mlp norm norm1 norm1_context norm_out
x_embedder context_embedder time_text_embed timestep_embedder text_embedder guidance_embedder
"""
_SEGMENT = re.compile(r"(?:" + "|".join(sorted(_WORDS.split(), key=len, reverse=True)) + r"|\d+)(?=_|$)")
_ENCODER = re.compile(r"(lora_te\d?)_(.+)")


# How the formats call the tensors of a layer.
_KINDS = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".down": "down",  # checkpoints of the studio itself
    ".up": "up",
    ".diff": "diff",
    ".alpha": "alpha",
}


@dataclass(frozen=True)
class Target:
    """Canonical module paths that one module of a file stands for; more than one if it is fused, `fused` is then its name."""

    family: str
    paths: tuple[str, ...]
    fused: str = ""


def split_key(key: str) -> tuple[str, str] | None:
    """The module part of a key and what the tensor is: down, up, mid, diff or alpha; None if it is none of these."""
    for suffix, kind in _KINDS.items():
        if key.endswith(suffix):
            return key[: -len(suffix)], kind
    return None


def grouped(keys: Mapping[str, object]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Module part -> kind -> key, and the keys that mean nothing here."""
    groups: dict[str, dict[str, str]] = {}
    unknown = []
    for key in keys:
        found = split_key(key)
        if found is None or target(found[0]) is None:
            unknown.append(key)
        else:
            groups.setdefault(found[0], {})[found[1]] = key
    return groups, unknown


def dotted(name: str) -> str | None:
    """`input_blocks_4_1_proj_in` -> `input_blocks.4.1.proj_in`; None if a segment is unknown."""
    segments = []
    position = 0
    while position < len(name):
        found = _SEGMENT.match(name, position)
        if found is None:
            return None
        segments.append(found[0])
        position = found.end() + 1
    return ".".join(segments)


def target(module: str) -> Target | None:
    """What the module part of a key means: `lora_unet_...`, `lora_te1_...`, `unet....`, `diffusion_model....`; None if it means nothing here."""
    for prefix in ("lora_unet_", "lora_transformer_"):
        if module.startswith(prefix):
            path = dotted(module[len(prefix) :])
            return _denoiser(path) if path else None
    if module.startswith("lora_te"):
        return _encoder(module)
    head, _, path = module.partition(".")
    if head == "diffusion_model" or head in ("unet", "transformer"):
        return _denoiser(path)
    if head in ("text_encoder", "text_encoder_2"):
        path = path if path.startswith(("text_model.", "text_projection")) or ".block." in path else "text_model." + path
        family = "flux" if ".block." in path else ""
        return Target(family, (f"{head}.{path}",)) if sdxl_names.TEXT.fullmatch(path) or flux_names.TEXT.fullmatch(path) else None
    return None


def _denoiser(path: str) -> Target | None:
    if sdxl_names.is_module(path):
        return Target("sdxl", (f"unet.{path}",))
    if flux_names.is_module(path):
        return Target("flux", (f"transformer.{path}",))
    try:
        parts = flux_names.parts_of(path)
        return Target("flux", tuple(f"transformer.{part}" for part in parts), path)
    except KeyError:
        pass
    try:
        found = sdxl_names.from_ldm(path)
    except KeyError:
        return None
    return Target("sdxl", (f"unet.{found}",)) if sdxl_names.is_module(found) else None


def _encoder(module: str) -> Target | None:
    found = _ENCODER.fullmatch(module)
    path = dotted(found[2]) if found else None
    if found is None or path is None:
        return None
    if path.startswith("encoder.block."):  # T5
        return Target("flux", (f"text_encoder_2.{path}",)) if found[1] in flux_names.PREFIXES and flux_names.TEXT.fullmatch(path) else None
    part = sdxl_names.PREFIXES.get(found[1])
    if part is None or not sdxl_names.TEXT.fullmatch(path):
        return None
    return Target("sdxl" if part == "text_encoder_2" else "", (f"{part}.{path}",))
