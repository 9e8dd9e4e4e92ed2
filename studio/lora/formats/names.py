"""From the module name in a file to the canonical module path. Pure: names and shapes in, names out."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

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
norm2 norm3 conv_norm_out layer_norm1 layer_norm2 final_layer_norm
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
    ".lora_B.bias": "up_bias",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_B.default.bias": "up_bias",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".down": "down",  # checkpoints of the studio itself
    ".up": "up",
    ".hada_w1_a": "w1_a",
    ".hada_w1_b": "w1_b",
    ".hada_w2_a": "w2_a",
    ".hada_w2_b": "w2_b",
    ".hada_t1": "t1",
    ".hada_t2": "t2",
    ".lokr_w1": "kron_w1",
    ".lokr_w1_a": "kron_w1_a",
    ".lokr_w1_b": "kron_w1_b",
    ".lokr_w2": "kron_w2",
    ".lokr_w2_a": "kron_w2_a",
    ".lokr_w2_b": "kron_w2_b",
    ".lokr_t2": "kron_t2",
    ".dora_scale": "magnitude",
    ".lora_magnitude_vector": "peft_magnitude",
    ".lora_magnitude_vector.weight": "peft_magnitude",
    ".lora_magnitude_vector.default.weight": "peft_magnitude",
    ".diff": "diff",
    ".w_norm": "diff",
    ".diff_b": "diff_b",
    ".b_norm": "diff_b",
    ".alpha": "alpha",
}
KNOWN = 2**16  # names remembered: the same few thousand come in every file
LISTS = 8  # whole lists of them
_BY_LENGTH = sorted(_KINDS.items(), key=lambda item: -len(item[0]))
EMBEDDING = "bundle_emb."
# Attention processors of old diffusers: `...attn1.processor.to_q_lora.down.weight`; to_out is a list of two in the model.
_PROCESSOR = re.compile(r"(.+)\.processor\.(to_[qkv]|to_out|add_[qkv]_proj|to_add_out)_lora\.(down|up)\.weight")
# XLabs: lora1 is the picture's stream, lora2 the text's; in single blocks qkv is the first part of linear1 and proj is linear2.
_XLABS = re.compile(r"(?:diffusion_model\.)?(double|single)_blocks\.(\d+)\.processor\.(qkv|proj)_lora([12]?)\.(down|up)\.weight")
_XLABS_SINGLE = re.compile(r"(single_blocks\.\d+\.linear1)\[qkv\]")
_NORM = re.compile(
    r"(?:(?:down|up)_blocks\.[0-2]|mid_block)\.(?:attentions\.[0-2]\.(?:norm|transformer_blocks\.\d\.norm[123])|resnets\.[0-2]\.norm[12])|conv_norm_out"
)
_TEXT_NORM = re.compile(r"text_model\.(?:encoder\.layers\.\d+\.layer_norm[12]|final_layer_norm)")
_DENOISERS = ("model.diffusion_model.", "diffusion_model.", "base_model.model.", "unet.", "transformer.")
_ENCODERS = {
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.t5xxl.transformer.": "text_encoder_2",
    "clip_l.": "text_encoder",
    "clip_g.": "text_encoder_2",
    "t5.": "text_encoder_2",
}


@dataclass(frozen=True)
class Target:
    """Canonical module paths that one module of a file stands for; more than one if it is fused, `fused` is then its name."""

    family: str  # empty for CLIP-L, which both families have
    paths: tuple[str, ...]
    fused: str = ""

    @property
    def plain(self) -> bool:
        """Whether it is one module, with its rows as diffusers has them."""
        return len(self.paths) == 1 and not (self.fused and self.paths[0].endswith(flux_names.SWAPPED))


@lru_cache(KNOWN)
def split_key(key: str) -> tuple[str, str] | None:
    """The module part of a key and which tensor of a layer it is; None if it is none."""
    if found := _PROCESSOR.fullmatch(key):
        return f"{found[1]}.{'to_out.0' if found[2] == 'to_out' else found[2]}", found[3]
    if found := _XLABS.fullmatch(key):
        block, number, part, stream, kind = found.groups()
        if block == "single":
            return f"single_blocks.{number}.{'linear1[qkv]' if part == 'qkv' else 'linear2'}", kind
        return f"double_blocks.{number}.{'txt' if stream == '2' else 'img'}_attn.{part}", kind
    for suffix, kind in _BY_LENGTH:
        if key.endswith(suffix):
            return key[: -len(suffix)], kind
    return None


def embedding(key: str) -> tuple[str, str] | None:
    """Name and encoder of a textual inversion that is bundled with a LoRA: `bundle_emb.NAME.clip_l`; None for other keys."""
    if not key.startswith(EMBEDDING):
        return None
    rest = key.removeprefix(EMBEDDING)
    if rest.endswith(".string_to_param.*"):
        return rest.removesuffix(".string_to_param.*"), "*"
    name, _, encoder = rest.rpartition(".")
    return (name, encoder) if name else None


def grouped(keys: Iterable[str]) -> tuple[Mapping[str, Mapping[str, str]], Sequence[str]]:
    """Module part -> kind -> key, and the keys that mean nothing here. Files of one program and base have the same keys, so they are remembered."""
    return _grouped(tuple(keys))


@lru_cache(LISTS)
def _grouped(keys: tuple[str, ...]) -> tuple[Mapping[str, Mapping[str, str]], Sequence[str]]:
    groups: dict[str, dict[str, str]] = {}
    strangers: set[str] = set()
    unknown = []
    for key in keys:
        found = split_key(key)
        if found and found[0] not in groups and found[0] not in strangers and target(found[0]) is None:
            strangers.add(found[0])
        if found is None or found[0] in strangers:
            if embedding(key) is None:
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


@lru_cache(KNOWN)
def target(module: str) -> Target | None:
    """What the module part of a key means: `lora_unet_...`, `lora_te1_...`, `unet....`, `diffusion_model....`; None if it means nothing here."""
    for prefix in ("lora_unet_", "lora_transformer_", "lycoris_unet_", "lycoris_transformer_", "lycoris_"):
        # `lycoris_` stands right before the path, whose first word may be `transformer_blocks`.
        if module.startswith(prefix) and (path := dotted(module[len(prefix) :])):
            return _denoiser(path)
    if module.startswith("lora_te"):
        return _encoder(module)
    for prefix, part in _ENCODERS.items():
        if module.startswith(prefix):
            return _text(part, module[len(prefix) :])
    prefix = next((prefix for prefix in _DENOISERS if module.startswith(prefix)), "")
    return _denoiser(module[len(prefix) :])


def _text(part: str, path: str) -> Target | None:
    if ".block." in path:
        return Target("flux", (f"{part}.{path}",)) if part == "text_encoder_2" and flux_names.TEXT.fullmatch(path) else None
    path = path if path.startswith(("text_model.", "text_projection")) else "text_model." + path
    if not sdxl_names.TEXT.fullmatch(path) and not _TEXT_NORM.fullmatch(path):
        return None
    return Target("sdxl" if part == "text_encoder_2" else "", (f"{part}.{path}",))


def _denoiser(path: str) -> Target | None:
    if found := _XLABS_SINGLE.fullmatch(path):
        return Target("flux", tuple(f"transformer.{part}" for part in flux_names.parts_of(found[1])[:3]), found[1])
    if is_unet(path):
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
    return Target("sdxl", (f"unet.{found}",)) if is_unet(found) else None


def partners(path: str) -> tuple[str, ...]:
    """Canonical paths of the modules that kohya's files keep as one with this one, itself among them."""
    part, _, inner = path.partition(".")
    if part != "transformer" or not flux_names.is_module(inner):
        return (path,)
    return tuple(f"{part}.{other}" for other in flux_names.slot(inner).parts)


def is_unet(path: str) -> bool:
    """Whether an SDXL U-Net has a module with a weight of that diffusers name, its norms included."""
    return sdxl_names.is_module(path) or (_NORM.fullmatch(path) is not None and not path.startswith(("down_blocks.0.attentions", "up_blocks.2.attentions")))


def is_text(path: str) -> bool:
    """The same for the CLIP encoders of SDXL and FLUX.1."""
    return sdxl_names.TEXT.fullmatch(path) is not None or _TEXT_NORM.fullmatch(path) is not None


def _encoder(module: str) -> Target | None:
    found = _ENCODER.fullmatch(module)
    path = dotted(found[2]) if found else None
    if found is None or path is None:
        return None
    if path.startswith("encoder.block."):  # T5
        return Target("flux", (f"text_encoder_2.{path}",)) if found[1] in flux_names.PREFIXES and flux_names.TEXT.fullmatch(path) else None
    part = sdxl_names.PREFIXES.get(found[1])
    return _text(part, path) if part and is_text(path) else None
