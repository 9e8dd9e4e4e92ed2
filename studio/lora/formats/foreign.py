"""Files that are no LoRA for SDXL or FLUX.1, told by their tensor names and shapes, each by what it is. Pure.

A signature is a set of substrings that must all occur among the names; each name is preceded and followed by a newline, so that
`\\nbody.0.` is the beginning of a name and `.weight\\n` the end of one. The first signature that fits decides.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Foreign:
    kind: str
    family: str
    words: str  # "is a ..."


TITLES = {
    "sdxl": "SDXL",
    "flux": "FLUX.1",
    "sd1": "Stable Diffusion 1",
    "sd2": "Stable Diffusion 2",
    "sd3": "Stable Diffusion 3",
    "flux2": "FLUX.2",
    "chroma": "Chroma",
    "wan": "Wan video",
    "hunyuan": "HunyuanVideo",
    "qwen": "Qwen-Image",
    "zimage": "Z-Image or Lumina",
    "ltx": "LTX-Video or PixArt",
    "anima": "Anima or Cosmos",
    "cascade": "Stable Cascade",
    "kolors": "Kolors",
    "llm": "a language model",
}

_LORA_MARKS = (
    ".lora_down.",
    ".lora_up.",
    ".lora_A.",
    ".lora_B.",
    ".lora.down.",
    "_lora.down.",
    "_lora1.down.",
    ".lora_linear_layer.",
    ".hada_w1",
    ".lokr_w1",
    ".oft_blocks",
    ".oft_diag",
    ".oft_R.",
    ".boft_",
    ".ia3_l",
    ".on_input\n",
    ".diff\n",
    ".diff_b\n",
    ".w_norm\n",
    ".a1.weight\n",
    ".vera_",
)
_LORA_STARTS = ("\nlora_unet_", "\nlora_te", "\nlora_transformer_", "\nlycoris_", "\nlora_prior_unet_")

# Algorithms that the studio does not read, and how they call themselves.
UNREADABLE = {".oft_": "OFT", ".boft_": "BOFT", ".a1.weight": "GLoRA", ".on_input": "IA3", ".ia3_l": "IA3", ".vera_": "VeRA", ".lora_E": "AdaLoRA"}

_FILES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("\nlora_controlnet\n",), "controlnet", "a Control-LoRA, which steers composition by a second picture"),
    (("lllite_",), "controlnet", "a ControlNet-LLLite"),
    (("\ncontrolnet_cond_embedding.",), "controlnet", "a ControlNet"),
    (("\ncontrol_model.",), "controlnet", "a ControlNet"),
    (("\ninput_hint_block.",), "controlnet", "a ControlNet"),
    (("\ncontrolnet_blocks.",), "controlnet", "a ControlNet"),
    (("\ncontrolnet_down_blocks.",), "controlnet", "a ControlNet"),
    (("ip_adapter",), "ip-adapter", "an IP-Adapter"),
    (("to_k_ip",), "ip-adapter", "an IP-Adapter"),
    (("\nimage_proj.",), "ip-adapter", "an IP-Adapter"),
    (("\nadapter.body.0.",), "t2i-adapter", "a T2I-Adapter"),
    (("\nbody.0.block1.",), "t2i-adapter", "a T2I-Adapter"),
    (("\nbody.0.resnets.0.block1.",), "t2i-adapter", "a T2I-Adapter"),
    (("motion_modules.",), "motion module", "a motion module for AnimateDiff"),
    (("\nmodel.0.weight\n", "\nmodel.1.sub.0."), "upscaler", "an upscaler (ESRGAN)"),
    (("\nconv_first.weight\n",), "upscaler", "an upscaler"),
    (("\nparams_ema.",), "upscaler", "an upscaler"),
    (("residual_group.blocks.0.",), "upscaler", "an upscaler (SwinIR, HAT or DAT)"),
    (("\nvision_model.encoder.",), "vision encoder", "a CLIP vision encoder"),
    (("model.diffusion_model.", "\nconditioner.embedders.1."), "checkpoint", "a full SDXL checkpoint"),
    (("model.diffusion_model.", "\nconditioner.embedders.0.model."), "checkpoint", "a full SDXL refiner checkpoint"),
    (("model.diffusion_model.", "\ncond_stage_model.transformer."), "checkpoint", "a full Stable Diffusion 1 checkpoint"),
    (("model.diffusion_model.", "\ncond_stage_model.model."), "checkpoint", "a full Stable Diffusion 2 checkpoint"),
    (("model.diffusion_model.double_blocks.",), "checkpoint", "a full FLUX checkpoint"),
    (("model.diffusion_model.joint_blocks.",), "checkpoint", "a full Stable Diffusion 3 checkpoint"),
    (("\nmodel.diffusion_model.", "\nfirst_stage_model."), "checkpoint", "a full checkpoint of an image model"),
    (("\nmodel.diffusion_model.input_blocks.",), "denoiser", "the U-Net of a checkpoint alone"),
    (("\ndouble_blocks.0.", ".img_attn.qkv.weight\n"), "denoiser", "a FLUX transformer (the base model itself)"),
    (("\nsingle_transformer_blocks.0.",), "denoiser", "a FLUX transformer (the base model itself)"),
    (("\njoint_blocks.0.",), "denoiser", "a Stable Diffusion 3 transformer"),
    (("\ninput_blocks.0.0.weight\n",), "denoiser", "a U-Net (the base model itself)"),
    (("\ndown_blocks.0.resnets.0.",), "denoiser", "a U-Net (the base model itself)"),
    (("\nfirst_stage_model.",), "vae", "a VAE"),
    (("\nencoder.conv_in.weight\n", "\ndecoder.conv_in.weight\n"), "vae", "a VAE"),
    (("\ntaesd_",), "vae", "a preview VAE (TAESD)"),
    (("\nencoder.block.0.layer.0.SelfAttention.",), "text encoder", "a T5 text encoder"),
    (("\ntext_model.encoder.layers.0.",), "text encoder", "a CLIP text encoder"),
    (("\ntransformer.resblocks.0.",), "text encoder", "a CLIP text encoder"),
    (("\nmodel.layers.0.self_attn.",), "language model", "a language model"),
)
_EMBEDDING = ("emb_params", "clip_l", "clip_g", "t5xxl", "string_to_param.*", "text_encoders_0", "text_encoders_1")

_FAMILIES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("\nbase_model.model.model.layers.",), "llm"),
    (("\nlora_prior_unet_",), "cascade"),
    (("distilled_guidance_layer",), "chroma"),
    (("to_qkv_mlp_proj",), "flux2"),
    (("double_stream_modulation",), "flux2"),
    (("joint_blocks",), "sd3"),
    ((".img_attn_qkv.",), "hunyuan"),
    (("cross_attn", "self_attn", "blocks", "ffn"), "wan"),
    (("cross_attn", "self_attn", "adaln_modulation"), "anima"),
    (("cross_attn", "self_attn", "mlp", "blocks"), "anima"),
    (("cross_attn", "self_attn", "blocks"), "wan"),
    (("blocks.0.cross_attn",), "wan"),
    (("img_mlp.net", "transformer_blocks"), "qwen"),
    (("img_mlp_net", "transformer_blocks"), "qwen"),
    (("img_mod.1", "transformer_blocks"), "qwen"),
    (("layers.", ".attention.to_q"), "zimage"),
    (("layers_", "_attention_to_q"), "zimage"),
    (("_refiner",), "zimage"),
    (("transformer.transformer_blocks.", ".attn1."), "ltx"),
    (("diffusion_model.transformer_blocks.", ".attn1."), "ltx"),
)
_SD_NAMES = ("\nlora_te_", "down_blocks_0_attentions", "down_blocks.0.attentions", "input_blocks_1_1_", "input_blocks.1.1.", "up_blocks_3_", "up_blocks.3.")
_SD3_WIDTHS = (1536, 2432)
_CROSS = re.compile(r"attn2_(?:processor_)?to_[kv]_")
_NUMBER = re.compile(r"(single_)?(?:transformer|double|single)_blocks[._](\d+)[._]")
BLOCKS = {"double": 19, "single": 38}  # of FLUX.1


def joined(shapes: Shapes) -> str:
    return "\n" + "\n".join(shapes) + "\n"


def is_lora(text: str) -> bool:
    """Whether names of LoRA tensors are among the names. `text` is what `joined` gives."""
    return any(start in text for start in _LORA_STARTS) or any(mark in text for mark in _LORA_MARKS)


def unreadable(text: str) -> str:
    """The algorithms among the names that the studio cannot read, in words."""
    return " and ".join(dict.fromkeys(title for mark, title in UNREADABLE.items() if mark in text))


def file(shapes: Shapes, text: str) -> Foreign | None:
    """What a file that is no LoRA is; None if it is nothing known."""
    if all(name in _EMBEDDING or name.startswith("<") for name in shapes):
        return Foreign("embedding", *_embedding(shapes))
    for marks, kind, words in _FILES:
        if all(mark in text for mark in marks):
            family = next((name for name in ("sdxl", "sd1", "sd2", "sd3") if TITLES[name] in words), "flux" if "FLUX" in words else "")
            return Foreign(kind, family, f"is {words}, not a LoRA")
    return None


def lora(shapes: Shapes, text: str) -> Foreign | None:
    """The base of a LoRA that is not for SDXL or FLUX.1 although some of its names may look so; None if nothing speaks against these."""
    if "_norm.scale\n" in text and ".lora_A." in text:
        return Foreign("control-lora", "flux", "is a FLUX.1 control LoRA, which takes a second picture (depth, edges) that the studio does not give")
    if any(mark in text for mark in _SD_NAMES):
        family = _stable_diffusion(shapes)
        return Foreign("lora", family, f"is a LoRA for {TITLES[family] if family else 'Stable Diffusion 1 or 2'}")
    for marks, family in _FAMILIES:
        if all(mark in text for mark in marks):
            return Foreign("lora", family, f"is a LoRA for {TITLES[family]}")
    return _by_shape(shapes)


def _by_shape(shapes: Shapes) -> Foreign | None:
    for key, shape in shapes.items():
        if len(shape) < 2 or not key.endswith(("lora_down.weight", "lora_A.weight", "lora.down.weight", "_lora.down.weight")):
            continue
        module = key.replace(".", "_")
        channels = shape[1]
        if channels in (768, 1024) and _CROSS.search(module):
            return Foreign("lora", "sd1" if channels == 768 else "sd2", f"is a LoRA for Stable Diffusion {_of(channels)} ({key} takes {channels} channels)")
        if channels == 4096 and _CROSS.search(module):
            return Foreign("lora", "kolors", f"is a LoRA for Kolors ({key} takes {channels} channels, SDXL has 2048)")
        if channels in _SD3_WIDTHS and "attn_to_q_" in module and "transformer_blocks" in module:
            return Foreign("lora", "sd3", f"is a LoRA for Stable Diffusion 3 ({key} takes {channels} channels)")
        if "single_blocks" in module and "_linear1_" in module:
            up = shapes.get(key.replace("lora_down", "lora_up").replace("lora_A", "lora_B"))
            if up and up[0] != 7 * channels:
                return Foreign("lora", "", f"is a LoRA for another FLUX than FLUX.1 ({key} leads to {up[0]} rows, not {7 * channels})")
    for key in shapes:
        if (found := _NUMBER.search(key)) and "attentions" not in key:
            limit = BLOCKS["single" if "single" in found[0] else "double"]
            if int(found[2]) >= limit and len(found[2]) < 5:
                return Foreign("lora", "", f"is a LoRA for another base than FLUX.1, which has only {limit} such blocks ({key})")
    return None


def _of(channels: int) -> int:
    return 1 if channels == 768 else 2


def _stable_diffusion(shapes: Shapes) -> str:
    """sd1 or sd2 by the channels that the text has in cross-attention or in the text encoder."""
    for key, shape in shapes.items():
        module = key.replace(".", "_")
        text = _CROSS.search(module) is not None or (module.startswith("lora_te_") and "self_attn_q_proj" in module)
        if len(shape) >= 2 and text and re.search(r"lora_A|lora[_.]down", key) and shape[1] in (768, 1024):
            return "sd1" if shape[1] == 768 else "sd2"
    return ""


def _embedding(shapes: Shapes) -> tuple[str, str]:
    widths = {shape[-1] for shape in shapes.values() if shape}
    family = "sdxl" if 1280 in widths else "sd1" if widths == {768} else "sd2" if widths == {1024} else "flux" if 4096 in widths else ""
    base = f" for {TITLES[family]}" if family else ""
    return family, f"is a textual inversion (embedding){base}, not a LoRA"
