"""What a LoRA file is, from the names and shapes of its tensors alone. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from studio.lora.formats import names

Shapes = Mapping[str, tuple[int, ...]]

_OTHER_ALGORITHMS = {
    ".hada_w1": "LoHa",
    ".lokr_w1": "LoKr",
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".oft_": "OFT",
    ".w_norm": "norm",
    ".a1.weight": "GLoRA",
}


@dataclass(frozen=True)
class Detection:
    """format: kohya, peft, dotted (diffusion_model.), checkpoint (a run's own) or unknown. family is empty if it is unknown or could be several."""

    format: str
    family: str
    confidence: float  # share of the tensors that have a place in that family
    reason: str
    modules: int = 0
    unknown: tuple[str, ...] = ()


def detect(shapes: Shapes) -> Detection:
    """Format and family of a LoRA, and in one sentence why."""
    groups, unknown = names.grouped(shapes)
    layout = _format(shapes)
    targets = [target for module in groups if (target := names.target(module))]
    n = sum(len(target.paths) for target in targets)
    families = sorted({target.family for target in targets} - {""})
    foreign = _foreign(shapes)
    if foreign:
        return Detection("unknown", "", 0.0, foreign, 0, tuple(unknown))
    if not targets:
        return Detection("unknown", "", 0.0, _nothing_known(shapes), 0, tuple(unknown))
    if len(families) > 1:
        return Detection(layout, "", 0.0, f"mixes layers of {' and '.join(families)}", n, tuple(unknown))
    confidence = 1 - len(unknown) / len(shapes)
    if not families:
        return Detection(layout, "", confidence, "holds only CLIP-L layers, which SDXL and FLUX.1 share", n, tuple(unknown))
    reason = f"{n} {layout} layers named as in {families[0]}" + (f", {len(unknown)} tensors unknown" if unknown else "")
    return Detection(layout, families[0], confidence, reason, n, tuple(unknown))


def algorithm(keys: Mapping[str, object]) -> str:
    """The name of an algorithm other than plain LoRA that the keys belong to, or nothing."""
    return next((title for part, title in _OTHER_ALGORITHMS.items() if any(part in key for key in keys)), "")


def _format(shapes: Shapes) -> str:
    if any(key.startswith(("lora_unet_", "lora_te", "lora_transformer_")) for key in shapes):
        return "kohya"
    if any(key.startswith("diffusion_model.") for key in shapes):
        return "dotted"
    if any(key.endswith(".down") for key in shapes):
        return "checkpoint"
    return "peft"


def _foreign(shapes: Shapes) -> str:
    """Why the file is for a base of another kind, although some names look familiar; or nothing."""
    if any(key.startswith("lora_te_") or "down_blocks_0_attentions" in key or "down_blocks.0.attentions" in key for key in shapes):
        return "is a LoRA for Stable Diffusion 1 or 2"
    for key, shape in shapes.items():
        found = names.split_key(key)
        if found is None or found[1] != "down" or len(shape) < 2:
            continue
        module = found[0].replace(".", "_")
        if module.endswith(("attn2_to_k", "attn2_to_v")) and shape[1] in (768, 1024):
            return f"is a LoRA for Stable Diffusion {1 if shape[1] == 768 else 2} ({key} takes {shape[1]} channels, SDXL has 2048)"
        if module.endswith("_linear1") and "single_blocks" in module:
            up = shapes.get(key.replace("lora_down", "lora_up").replace("lora_A", "lora_B"))
            if up and up[0] != 7 * shape[1]:
                return f"is a LoRA for another FLUX than FLUX.1 ({key} leads to {up[0]} rows, not {7 * shape[1]})"
    return ""


def _nothing_known(shapes: Shapes) -> str:
    if not shapes:
        return "holds no tensors"
    title = algorithm(shapes)
    if title:
        return f"holds {title} layers, which the studio cannot read"
    first = next(iter(shapes))
    if names.split_key(first) is None and not any("lora" in key for key in shapes):
        return f"is no LoRA (first tensor: {first})"
    return f"is a LoRA for a base that the studio does not know (first tensor: {first})"
