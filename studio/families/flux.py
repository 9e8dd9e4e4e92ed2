"""FLUX.1: a transformer under CLIP and T5, predicting the velocity of a rectified flow."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.families import anatomy, checkpoints, flux_anatomy, prompts, words
from studio.families import parts as shared
from studio.families.base import Base, Components, Conditioning, Facts, Part, Passage
from studio.families.layout import Section, prefixed

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import Tensor

CONFIG = shared.CONFIGS / "flux"
CLIP_TOKENS = 77
TEXT_TOKENS = 512  # a base's habits may say otherwise
SCHNELL_TOKENS = 256  # bases without guidance embedding
# 1.0 keeps what guidance distillation put into the base; 3.5, the value to draw with, would have to be learned anew.
TRAINING_GUIDANCE = 1.0

_DOUBLE = r"transformer_blocks\.\d+\."
_SINGLE = r"single_transformer_blocks\.\d+\."
_ATTENTION = (_DOUBLE + r"attn\.(to_q|to_k|to_v|add_q_proj|add_k_proj|add_v_proj|to_out\.0|to_add_out)", _SINGLE + r"attn\.to_(q|k|v)")
_MLP = (_DOUBLE + r"(ff|ff_context)\.net\.(0\.proj|2)", _SINGLE + r"proj_(mlp|out)")
_MODULATION = (_DOUBLE + r"(norm1|norm1_context)\.linear", _SINGLE + r"norm\.linear")

FACTS = Facts(
    name="flux",
    title="FLUX.1",
    default_base="demo-flux",
    objective="flow",
    denoiser="transformer",
    text_encoders=("text_encoder", "text_encoder_2"),
    size_multiple=16,
    native_area=1024 * 1024,
    lora_targets={
        "attention": _ATTENTION,
        "attention+mlp": _ATTENTION + _MLP,
        "all-linear": _ATTENTION + _MLP + _MODULATION,
        "full+conv": _ATTENTION + _MLP + _MODULATION,
    },
    modelspec="flux-1-dev/lora",
    implementation="https://github.com/black-forest-labs/flux",
    kohya_version="flux1",
    kohya_module="networks.lora_flux",
    civitai_base="Flux.1 D",
    defaults={
        "train": {"resolution": 1024, "batch_size": 1, "rank": 16, "learning_rate": 1e-4, "steps": 1500},
        "generate": {"width": 1024, "height": 1024, "steps": 28, "guidance": 3.5},
    },
    reasons={
        "resolution": "1024 px is what is drawn at; 512 or 768 trains two to three times faster and is enough for many subjects",
        "rank": "16 is what most FLUX.1 recipes settle on; the base is large, so a small rank goes far",
        "alpha": "Equal to rank, so the learning rate means what it says; a smaller alpha is a smaller learning rate",
        "learning_rate": "1e-4 with alpha = rank and guidance 1.0 while training",
        "steps": "About 60 to 100 steps a picture for 15 to 25 pictures",
        "flow_shift": "Follows the number of image tokens, as the base was trained: 1.88 at 512 px, 3.16 at 1024 px",
        "gradient_checkpointing": "Where a recorded step fits without it, it stays off; needed below some 44 GB at 1024 px, for about a third more time",
        "guidance": "The embedding value the base draws well with; it is one forward pass, not two",
        "precision": "bf16 has the range of fp32; T5 overflows in fp16",
    },
    samplers={
        "Euler": "flow_euler",
        "Heun": "flow_heun",
        "DPM++ 2M": "flow_dpmpp_2m",
        "DPM++ 2M SDE": "flow_dpmpp_2m_sde",
        "UniPC": "flow_unipc",
        "LCM": "flow_lcm",
    },
    one_input=(
        r"(transformer_blocks\.\d+)\.attn\.to_[qkv]",
        r"(transformer_blocks\.\d+)\.attn\.add_[qkv]_proj",
        r"(single_transformer_blocks\.\d+)\.(?:attn\.to_[qkv]|proj_mlp)",
    ),
    blocks={"double": r"transformer_blocks\.(\d+)\.", "single": r"single_transformer_blocks\.(\d+)\."},
    words={"text_encoder": ("clip_l",), "text_encoder_2": ("t5", "t5xxl")},
    fuses=True,
    negative_prompts=False,
)


class Flux:
    facts = FACTS

    def recognise_folder(self, folder: Path, index: Mapping[str, Any]) -> dict[str, Any] | None:
        """Habits of a diffusers folder if it is a FLUX.1 text-to-image base, else None."""
        if index.get("_class_name") != "FluxPipeline" or "transformer" not in index:
            return None
        return _habits(guided=bool(shared.read_json(folder / "transformer" / "config.json").get("guidance_embeds")))

    def recognise_file(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        """Habits of a transformer file in the names of its makers if it is a FLUX.1 base, else None."""
        names = {name.removeprefix("model.diffusion_model.") for name in shapes}
        if not {"double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight", "img_in.weight"} <= names:
            return None
        return _habits(guided="guidance_in.in_layer.weight" in names)

    def sections(self, names: Collection[str]) -> tuple[Section, ...]:
        """The transformer alone under bare names, or all parts of the pipeline in one file."""
        whole = any(name.startswith(checkpoints.UNET) for name in names)
        transformer = Section(checkpoints.UNET if whole else "", "transformer", checkpoints.flux_to_original, checkpoints.flux_from_original)
        if not whole and not any(name.startswith(("vae.", "text_encoders.")) for name in names):
            return (transformer,)
        return (
            Section("vae.", "vae", checkpoints.vae_to_ldm, checkpoints.vae_from_ldm),
            prefixed("text_encoders.clip_l.transformer.", "text_encoder"),
            prefixed("text_encoders.t5xxl.transformer.", "text_encoder_2"),
            transformer,
        )

    def markers(self, base: Base) -> tuple[str, ...]:
        return ()

    def measures(self, base: Base, height: int, width: int) -> anatomy.Measures:
        configs, tokens = shared.configs_of(base, CONFIG), text_tokens(base)
        net = flux_anatomy.anatomy(shared.read_json(configs / "transformer" / "config.json"), tokens, height // 8, width // 8)
        clip = anatomy.clip(shared.read_json(configs / "text_encoder" / "config.json"), "text_encoder", projected=False)
        t5 = anatomy.t5(shared.read_json(configs / "text_encoder_2" / "config.json"), "text_encoder_2", tokens)
        return anatomy.Measures(net, (clip, t5), *anatomy.vae(shared.read_json(configs / "vae" / "config.json"), height, width))

    def load(self, base: Base, parts: Sequence[Part], dtype: "torch.dtype", device: "torch.device") -> Components:
        """Transformer and CLIP in `dtype`, T5 too but never in fp16, the VAE in fp32."""
        found = _read_file(base, parts, dtype) if base.kind == "file" else read_folder(base.path, base.vae, parts, dtype, device)
        for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
            if name in found:
                found[name] = shared.freeze(found[name], device)
        return Components(base, FACTS, found, dtype, device, "flow")

    def encode_images(self, c: Components, pixels: "Tensor") -> "Tensor":
        return shared.encode_pixels(c.parts["vae"], pixels)

    def decode_latents(self, c: Components, latents: "Tensor") -> "Tensor":
        return shared.decode_latents(c.parts["vae"], latents)

    def encode_captions(self, c: Components, captions: Sequence[str]) -> Conditioning:
        """prompt_embeds (B, L, D): T5, padding unmasked as the base was trained; pooled_prompt_embeds (B, D2): CLIP."""
        pooled = words.read(c, "text_encoder", words.tokenize(c, "text_encoder", captions, CLIP_TOKENS)).pooler_output
        found = {"pooled_prompt_embeds": pooled.to(c.dtype)}
        if "text_encoder_2" in c.parts:
            embeds = words.read(c, "text_encoder_2", words.tokenize(c, "text_encoder_2", captions, text_tokens(c.base)))[0]
            found["prompt_embeds"] = embeds.to(c.dtype)
        return found

    def encode_prompt(self, c: Components, prompt: Sequence[Passage], tokens: int = 0) -> Conditioning:
        """T5 reads the whole prompt with its weights, in blocks of the base's length; CLIP's part is the first 77 tokens without weights."""
        import torch

        said = " ".join("".join(text for text, _ in passage).strip() for passage in prompt).strip()
        length, device = text_tokens(c.base), c.parts["text_encoder_2"].device
        with torch.no_grad():
            pooled = words.read(c, "text_encoder", words.tokenize(c, "text_encoder", [said], CLIP_TOKENS)).pooler_output
            ids, weights = prompts.t5_batch(c.parts["tokenizer_2"], prompt, length, max(tokens, length), device, words.of(c, "text_encoder_2"))
            embeds = prompts.weighed(words.read(c, "text_encoder_2", ids)[0], weights)
        return {"prompt_embeds": embeds.to(c.dtype), "pooled_prompt_embeds": pooled.to(c.dtype)}

    def predict(self, c: Components, noisy: "Tensor", timesteps: "Tensor", cond: Conditioning, sizes: "Tensor", guidance: float | None = None) -> "Tensor":
        import torch

        height, width = noisy.shape[-2:]
        embeds = cond["prompt_embeds"].to(c.dtype)
        told = None
        if c.denoiser.config.guidance_embeds:  # type: ignore[union-attr]
            told = torch.full((noisy.shape[0],), TRAINING_GUIDANCE if guidance is None else guidance, device=noisy.device)
        output = c.denoiser(
            hidden_states=pack(noisy).to(c.dtype),
            encoder_hidden_states=embeds,
            pooled_projections=cond["pooled_prompt_embeds"].to(c.dtype),
            timestep=timesteps.float() / 1000,
            img_ids=positions(height // 2, width // 2, noisy.device),
            txt_ids=torch.zeros(embeds.shape[1], 3, device=noisy.device),
            guidance=told,
            return_dict=False,
        )[0]
        return unpack(output, height, width)

    def pipeline(self, c: Components) -> "DiffusionPipeline":
        from diffusers import FluxPipeline

        return FluxPipeline(**c.parts)


def text_tokens(base: Base) -> int:
    """T5 tokens of a caption for this base."""
    return int(base.habits.get("text_tokens", TEXT_TOKENS))


def pack(latents: "Tensor") -> "Tensor":
    """(B, C, h, w) -> (B, h/2 * w/2, 4C): 2 x 2 latents make one token."""
    b, c, h, w = latents.shape
    return latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def unpack(tokens: "Tensor", height: int, width: int) -> "Tensor":
    """(B, h/2 * w/2, 4C) -> (B, C, height, width), in latents."""
    b, _, c = tokens.shape
    return tokens.reshape(b, height // 2, width // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, height, width)


def positions(rows: int, columns: int, device: "torch.device | None" = None) -> "Tensor":
    """(rows * columns, 3): 0, row and column of every image token. Made where they are used: a CUDA graph cannot take them from the CPU."""
    import torch

    row, column = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3).float()


def _habits(guided: bool) -> dict[str, Any]:
    if guided:
        return {"text_tokens": TEXT_TOKENS}
    labels = {"modelspec": "flux-1-schnell/lora", "civitai_base": "Flux.1 S"}
    return {"text_tokens": SCHNELL_TOKENS, "generate": {"steps": 4, "guidance": 0.0}, **labels}


def _read_file(base: Base, parts: Sequence[Part], dtype: "torch.dtype") -> dict[str, Any]:
    from studio.families import single

    return single.load_flux(base, parts, dtype, shared.configs_of(base, CONFIG))


def read_folder(folder: Path, vae: Path | None, parts: Sequence[Part], dtype: "torch.dtype", device: "torch.device") -> dict[str, Any]:
    """The named parts of a diffusers folder, by their names in the pipeline."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

    found: dict[str, Any] = {"scheduler": shared.reading(folder, lambda: FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"))}
    if "denoiser" in parts:
        found["transformer"] = shared.read_denoiser(FluxTransformer2DModel, folder, "transformer", dtype, device)
    if "vae" in parts:
        found["vae"] = shared.read_vae(folder, vae, CONFIG / "vae")
    if "text" in parts or "clip" in parts:
        found["text_encoder"] = shared.read_model(CLIPTextModel, folder, "text_encoder", dtype)
        found["tokenizer"] = shared.read_tokenizer(CLIPTokenizer, folder, "tokenizer")
    if "text" in parts:
        t5_dtype = torch.float32 if dtype == torch.float16 else dtype
        found["text_encoder_2"] = shared.read_model(T5EncoderModel, folder, "text_encoder_2", t5_dtype)
        found["tokenizer_2"] = shared.read_tokenizer(T5Tokenizer, folder, "tokenizer_2")
    return found


FLUX = Flux()
