"""Which client takes what, as a table: what it refuses, what it leaves out, and what it applies at another strength.

Every line was read in the client's source, most were run with its own loader: ComfyUI a125cd84, sd-scripts 48d368fa, diffusers 0.42.1,
Forge dfdcbab6, A1111 1.10, InvokeAI 8e71a8a5. Clients whose models a base is no part of have no rules for it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from studio.lora.clients.content import Content, Module

Refusal = tuple[Callable[[Content], bool], str]
Loss = tuple[Callable[[Module], bool], str]
KOHYA = ("ldm", "diffusers", "makers", "encoder")
_PEFT = ("peft",)


@dataclass(frozen=True)
class Rules:
    """One client and one family of bases."""

    refuses: tuple[Refusal, ...] = ()  # the whole file
    loses: tuple[Loss, ...] = ()  # single modules
    weakens: tuple[Refusal, ...] = ()  # loads, but not at the trained strength: another way of writing would help
    limits: tuple[Refusal, ...] = ()  # the same, but it lies in the kind of layers, however they are written
    most_lost: int | None = None  # tensors it leaves out before it refuses the file
    needs: tuple[Callable[[Content], frozenset[str]], str] | None = None  # modules that it passes over because others are not there
    wordless: str = ""  # why it leaves out new words that are bundled with the layers; empty if it reads them


def spelled(*spellings: str) -> Callable[[Content], bool]:
    return lambda c: bool(c.spellings & set(spellings))


def not_spelled(*spellings: str) -> Callable[[Module], bool]:
    return lambda m: m.spelling not in spellings


def of_other(family: str) -> Callable[[Module], bool]:
    return lambda m: bool(m.family) and m.family != family


def of_other_family(family: str) -> Callable[[Content], bool]:
    return lambda c: any(m.family and m.family != family for m in c.modules)


def has(kind: str) -> Callable[[Content], bool]:
    return lambda c: c.holds(kind)


def axis(*axes: str) -> Callable[[Content], bool]:
    return lambda c: any(m.axis in axes for m in c.modules)


def algorithm(*titles: str) -> Callable[[Content], bool]:
    return lambda c: any(m.algorithm in titles for m in c.modules)


def outside_blocks(m: Module) -> bool:
    """Embedders and the last layer, which lie in no block."""
    return bool(m.paths) and m.part in ("unet", "transformer") and "blocks." not in m.inner and not m.inner.startswith("mid_block.")


def no_text_model(m: Module) -> bool:
    return m.spelling == "peft" and m.part.startswith("text_encoder") and not m.t5 and ".text_model." not in m.name


def peft_attention(m: Module) -> bool:
    return m.spelling == "peft" and m.part == "unet" and (".attn1.to_" in m.name or ".attn2.to_" in m.name)


def incomplete_attention(c: Content) -> frozenset[str]:
    """Attention modules of the second text encoder whose layer lacks one of q, k, v, out."""
    layers: dict[str, list[str]] = {}
    for m in c.modules:
        if m.part == "text_encoder_2" and ".self_attn." in m.inner:
            layers.setdefault(m.inner.rpartition(".")[0], []).append(m.name)
    return frozenset(name for found in layers.values() if len(found) < 4 for name in found)


def no_alpha(c: Content) -> bool:
    return any("alpha" not in m.shapes for m in c.modules)


def alpha_twice(c: Content) -> bool:
    return c.holds("alpha") and "lora_adapter_metadata" in c.metadata


def alpha_in_header(c: Content) -> bool:
    return c.header_scales and not c.holds("alpha")


def alphas_differ(c: Content) -> bool:
    """On layers where diffusers looks alphas up under names that it does not use."""
    return any(m.name in c.deviating and (".to_" in m.inner if m.part == "unet" else ".self_attn." in m.inner) for m in c.modules if m.spelling != "peft")


def mixed_sdxl(c: Content) -> bool:
    return {"ldm", "diffusers"} <= c.spellings


def not_probed_as_sdxl(c: Content) -> bool:
    if c.token_width:
        return c.real and c.token_width != 2048
    paths = [path for m in c.modules for path in m.paths]
    if any("time_emb_proj" in path for path in paths):
        return False
    if {"text_encoder", "text_encoder_2"} <= {m.part for m in c.modules if ".self_attn." in m.inner}:
        return False
    return not any(f"transformer_blocks.{i}." in path for path in paths for i in range(2, 10))


_FIRST = ("transformer.single_transformer_blocks.0.attn.to_q", "transformer.transformer_blocks.0.attn.add_q_proj")


def unprobed_peft_flux(c: Content) -> bool:
    return "peft" in c.spellings and not set(_FIRST) <= {m.name for m in c.modules}


def more_than_halves(c: Content) -> bool:
    return "peft" in c.spellings and any(set(m.shapes) != {"down", "up"} for m in c.modules)


def peft_text(c: Content) -> bool:
    return any(m.spelling == "peft" and m.part.startswith("text_encoder") for m in c.modules)


def peft_qkv_missing(c: Content) -> bool:
    found = {m.name for m in c.modules if m.spelling == "peft"}
    for name in found:
        for trio in (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")):
            head, _, last = name.rpartition(".")
            if last in trio and name.startswith("transformer.transformer_blocks.") and not {f"{head}.{part}" for part in trio} <= found:
                return True
    return False


def unmatched_by_invoke(c: Content) -> bool:
    return any(m.spelling == "makers" and outside_blocks(m) and m.inner != "proj_out" for m in c.modules)


def invoke_t5(c: Content) -> bool:
    return any(m.t5 and m.name.startswith("lora_te3_") for m in c.modules)


def dotted_ab(c: Content) -> bool:
    return c.spellings == {"dotted"} and not c.holds("alpha")


_KOHYA_ONLY = (not_spelled(*KOHYA), "knows kohya names only (lora_unet_..., lora_te1_...)")
_NO_XLABS = (lambda m: m.spelling == "xlabs", "does not know XLabs names")
_UNKNOWN = (lambda m: not m.paths and m.spelling not in ("peft", "xlabs"), "these names have no place in the base model")
_UNKNOWN_PEFT = (lambda m: not m.paths, "these names have no place in the base model")
_MAGNITUDE: Refusal = (has("magnitude"), "PEFT's DoRA lengths are not read; the plain LoRA inside is applied")
_HEADER: Refusal = (alpha_in_header, "alpha stands in the header (lora_adapter_metadata), which only diffusers reads")
_PLAIN: tuple[Refusal, ...] = (
    (axis("input", "output", "flat"), "DoRA lengths are left out; the plain LoRA inside is applied"),
    (has("magnitude"), "DoRA lengths are left out; the plain LoRA inside is applied"),
)
_OUTPUT_1 = (axis("output"), "DoRA with lengths by output: divides by the base's lengths, off by about 1 % of the change")
_OUTPUT_21 = (axis("output", "flat"), "DoRA with lengths by output is applied along the input: about 20 times too strong")
_FLAT = (axis("flat"), "DoRA lengths in one dimension are multiplied crosswise; the change is wrong")

_COMFY_LOSSES: tuple[Loss, ...] = (
    (peft_attention, "attention layers under PEFT names are looked up as attn1.processor.to_q and not found"),
    (no_text_model, "text encoder names lack text_model"),
    _NO_XLABS,
    _UNKNOWN_PEFT,
)
_COMFY_LIMITS = (_OUTPUT_1, _MAGNITUDE)
_COMFY_WEAKENS = (_FLAT, _HEADER)


_WORDLESS = "new words are left out: it looks for a file of each word among its embeddings, which an export with side files writes"
_SILENT = "new words are left out"


def brings_words(c: Content) -> bool:
    return bool(c.words)


def _comfy(family: str) -> Rules:
    losses = ((of_other(family), "belong to another base model"), *_COMFY_LOSSES)
    return Rules(loses=losses, weakens=_COMFY_WEAKENS, limits=_COMFY_LIMITS, wordless=_WORDLESS)


def _forge(family: str) -> Rules:
    comfy = _comfy(family)
    return Rules(loses=comfy.loses, weakens=comfy.weakens, limits=comfy.limits, most_lost=12, wordless=_WORDLESS)


def _scripts(family: str, *more: Loss) -> tuple[Loss, ...]:
    return ((of_other(family), "belong to another base model"), _KOHYA_ONLY, _UNKNOWN, *more)


_NO_NETWORK = (algorithm("loha", "lokr", "diff", "other"), "networks.lora reads plain LoRA layers only; LyCORIS files need lycoris.kohya")
_TUCKER_SIZE = (has("mid"), "layers with a middle (lora_mid) raise a size mismatch")
_SCRIPTS_SHAPE = (lambda c: any(m.linear_as_convolution for m in c.modules), "linear layers stored with four dimensions raise a size mismatch")
_WRONG_BASE_RAISES = "raises, because it holds layers of another base model"
_MIXED_NAMES = (lambda c: bool(c.spellings & {"peft"}) and len(c.spellings) > 1, "mixes PEFT names with others, which raises")

SCRIPTS_SDXL = Rules(
    refuses=(_NO_NETWORK, _TUCKER_SIZE, _SCRIPTS_SHAPE),
    loses=_scripts("sdxl", (outside_blocks, "embedders, the first and the last convolution are never part of its network")),
    limits=_PLAIN,
    wordless=_SILENT,
)
SCRIPTS_FLUX = Rules(
    refuses=(
        _NO_NETWORK,
        _TUCKER_SIZE,
        (lambda c: no_alpha(c) and bool(c.spellings & {"makers"}), "raises KeyError, because some layer has no alpha"),
    ),
    loses=_scripts(
        "flux",
        (lambda m: m.t5 and m.name.startswith("lora_te2_"), "looks for T5 under lora_te3_"),
        (lambda m: m.inner in ("proj_out", "norm_out.linear"), "the last layer is never part of its network"),
    ),
    limits=_PLAIN,
    wordless=_SILENT,
)
DIFFUSERS_SDXL = Rules(
    refuses=(
        (lambda c: brings_words(c) and bool(c.spellings & set(KOHYA)), "takes a file with new words for PEFT names and finds no layer; export as peft"),
        (of_other_family("sdxl"), _WRONG_BASE_RAISES),
        (algorithm("loha", "lokr", "diff", "other"), "raises on layers other than plain LoRA"),
        (has("mid"), "layers with a middle (lora_mid) raise ValueError"),
        (alpha_twice, "raises, because alpha stands in the tensors and in lora_adapter_metadata"),
        _MIXED_NAMES,
        (
            lambda c: "peft" not in c.spellings and any(m.spelling in ("unknown", "lycoris") or (not m.paths and m.spelling in KOHYA) for m in c.modules),
            "raises on unknown names",
        ),
    ),
    loses=(
        (not_spelled(*KOHYA, *_PEFT), "names without the prefix of a pipeline part are passed over"),
        (lambda m: m.spelling == "diffusers" and m.inner.startswith("add_embedding."), "add_embedding has no place under diffusers names with kohya's prefix"),
        _UNKNOWN_PEFT,
    ),
    weakens=((alphas_differ, "takes the commonest alpha for every attention layer, so layers with another one get another strength"),),
    limits=((axis("input", "output", "flat"), "drops dora_scale with a warning; the plain LoRA inside is applied"),),
    wordless=_SILENT,
)
DIFFUSERS_FLUX = Rules(
    refuses=(
        (of_other_family("flux"), _WRONG_BASE_RAISES),
        (algorithm("loha", "lokr", "diff", "other"), "raises on layers other than plain LoRA"),
        (alpha_twice, "raises, because alpha stands in the tensors and in lora_adapter_metadata"),
        _MIXED_NAMES,
        (lambda c: not c.real and any(len(m.paths) > 1 for m in c.modules), "splits fused layers at the widths of the real FLUX.1 only (3072 and 12288)"),
    ),
    loses=(
        (lambda m: m.t5, "T5 layers are filtered out"),
        (lambda m: m.spelling == "makers" and outside_blocks(m), "layers outside the blocks lose their prefix and are passed over"),
        (lambda m: m.spelling == "dotted" and "alpha" not in m.shapes, "names without the prefix of a pipeline part are passed over"),
        (lambda m: not m.paths and m.spelling != "xlabs", "these names have no place in the base model"),
    ),
    limits=((axis("input", "output", "flat"), "drops dora_scale with a warning; the plain LoRA inside is applied"),),
    wordless=_SILENT,
)
A1111_SDXL = Rules(
    loses=(
        (of_other("sdxl"), "belong to another base model"),
        _KOHYA_ONLY,
        (
            lambda m: m.spelling == "diffusers" and m.inner.startswith(("add_embedding.", "up_blocks.0.upsamplers.")),
            "its rule for diffusers names is that of Stable Diffusion 1",
        ),
        _UNKNOWN,
    ),
    limits=(_OUTPUT_21, _MAGNITUDE),
    needs=(incomplete_attention, "attention of the second text encoder counts only where q, k, v and out are all there"),
)
INVOKE_SDXL = Rules(
    refuses=(
        (of_other_family("sdxl"), "is probed as a LoRA for another base model"),
        (spelled("peft", "dotted", "xlabs", "lycoris", "unknown"), "does not recognise SDXL LoRAs by other than kohya names"),
        (mixed_sdxl, "raises on a mix of LDM and diffusers spellings"),
        (not_probed_as_sdxl, "finds no layer by which it tells SDXL"),
    ),
    loses=(_UNKNOWN,),
    limits=(_OUTPUT_21,),
    wordless=_WORDLESS,
)
INVOKE_FLUX = Rules(
    refuses=(
        (brings_words, "recognises FLUX.1 files only where every tensor is of a layer, and vectors of new words are not"),
        (of_other_family("flux"), "is probed as a LoRA for another base model"),
        (unmatched_by_invoke, "raises on layers outside the blocks (img_in, txt_in, time_in, vector_in, guidance_in, adaLN)"),
        (spelled("lycoris"), "does not know names that begin with lycoris_"),
        (invoke_t5, "raises on T5 under lora_te3_"),
        (more_than_halves, "recognises PEFT names only where every tensor is a lora_A or lora_B: no alpha, no magnitude"),
        (unprobed_peft_flux, "recognises PEFT names only if block 0 has attn.to_q and attn.add_q_proj"),
        (peft_text, "raises on text encoder layers under PEFT names"),
        (peft_qkv_missing, "raises if a double block lacks one of q, k, v under PEFT names"),
        (lambda c: not any(m.family for m in c.modules), "does not recognise files of CLIP-L layers alone"),
    ),
    loses=((lambda m: m.spelling == "makers" and m.inner == "proj_out", "skips final_layer.linear"), _UNKNOWN),
    weakens=(_HEADER,),
    limits=(_OUTPUT_21,),
)

LOADERS: dict[str, dict[str, Rules]] = {
    "ComfyUI": {"sdxl": _comfy("sdxl"), "flux": _comfy("flux")},
    "A1111": {"sdxl": A1111_SDXL},
    "Forge": {"sdxl": _forge("sdxl"), "flux": _forge("flux")},
    "InvokeAI": {"sdxl": INVOKE_SDXL, "flux": INVOKE_FLUX},
    "sd-scripts": {"sdxl": SCRIPTS_SDXL, "flux": SCRIPTS_FLUX},
    "diffusers": {"sdxl": DIFFUSERS_SDXL, "flux": DIFFUSERS_FLUX},
    "SwarmUI": {"sdxl": _comfy("sdxl"), "flux": _comfy("flux")},  # it draws with ComfyUI
}
