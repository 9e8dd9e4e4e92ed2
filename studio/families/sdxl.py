"""Stable Diffusion XL: a U-Net under two CLIP text encoders, predicting noise (or velocity)."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from studio.families import anatomy, checkpoints, prompts, sdxl_anatomy, words
from studio.families import parts as shared
from studio.families.base import Base, Components, Conditioning, Facts, Part, Passage
from studio.families.layout import Section, prefixed

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import Tensor

CONFIG = shared.CONFIGS / "sdxl"
TOKENS = 77

_ATTENTION = r".+\.attn[12]\.to_(q|k|v|out\.0)"
_MLP = r".+\.ff\.net\.(0\.proj|2)"
_PROJECTIONS = r".+\.attentions\.\d+\.proj_(in|out)"
_CONVOLUTIONS = r".+\.(resnets\.\d+\.(conv1|conv2|time_emb_proj|conv_shortcut)|(down|up)samplers\.0\.conv)"

FACTS = Facts(
    name="sdxl",
    title="Stable Diffusion XL",
    default_base="demo-sdxl",
    objective="epsilon",
    denoiser="unet",
    text_encoders=("text_encoder", "text_encoder_2"),
    size_multiple=8,
    native_area=1024 * 1024,
    lora_targets={
        "attention": (_ATTENTION,),
        "attention+mlp": (_ATTENTION, _MLP),
        "all-linear": (_ATTENTION, _MLP, _PROJECTIONS),
        "full+conv": (_ATTENTION, _MLP, _PROJECTIONS, _CONVOLUTIONS),
    },
    modelspec="stable-diffusion-xl-v1-base/lora",
    implementation="https://github.com/Stability-AI/generative-models",
    kohya_version="sdxl_base_v1-0",
    kohya_module="networks.lora",
    words={"text_encoder": ("clip_l",), "text_encoder_2": ("clip_g",)},
    unread={"text_encoder": 1},  # the first encoder gives its last state but one, the second also its pooled end
    civitai_base="SDXL 1.0",
    defaults={
        "train": {"resolution": 1024, "batch_size": 1, "rank": 32, "learning_rate": 1e-4, "steps": 1500},
        "generate": {"width": 1024, "height": 1024, "steps": 28, "guidance": 6.0},
    },
    reasons={
        "resolution": "The size the base was trained at; smaller sizes blur and duplicate subjects",
        "rank": "32 is what most SDXL recipes settle on for characters and styles",
        "alpha": "Equal to rank, so the learning rate means what it says; a smaller alpha is a smaller learning rate",
        "learning_rate": "1e-4 on the U-Net with alpha = rank and the text encoders frozen",
        "steps": "About 60 to 100 steps a picture for 15 to 25 pictures",
        "min_snr_gamma": "Off; 5 evens out the noise levels and often learns styles faster",
        "gradient_checkpointing": "Where a recorded step fits without it, it stays off; it halves the memory at 1024 px for about a third more time",
        "guidance": "5 to 7 follows the prompt without burning colours",
        "precision": "bf16 has the range of fp32; the VAE stays in fp32 because it overflows in fp16",
    },
    samplers={
        "Euler": "euler",
        "Euler a": "euler_ancestral",
        "Euler SGM Uniform": "euler_trailing",
        "Heun": "heun",
        "DPM++ 2M": "dpmpp_2m",
        "DPM++ 2M Karras": "dpmpp_2m_karras",
        "DPM++ 2M SDE": "dpmpp_2m_sde",
        "DPM++ 2M SDE Karras": "dpmpp_2m_sde_karras",
        "DPM++ SDE": "dpmpp_sde",
        "DPM++ SDE Karras": "dpmpp_sde_karras",
        "DDIM": "ddim",
        "UniPC": "unipc",
        "LCM": "lcm",
        "TCD": "tcd",
    },
    one_input=(r"(.+\.attn1)\.to_[qkv]", r".+\.attn2\.to_[kv]"),  # the second is the text, for all attentions
    blocks={"input": r"down_blocks\.(\d+)\.", "middle": r"mid_block\.", "output": r"up_blocks\.(\d+)\."},
)


class Sdxl:
    facts = FACTS

    def recognise_folder(self, folder: Path, index: Mapping[str, Any]) -> dict[str, Any] | None:
        """Habits of a diffusers folder if it is an SDXL text-to-image base, else None."""
        if "unet" not in index or "text_encoder_2" not in index or "XL" not in str(index.get("_class_name")):
            return None
        if shared.read_json(folder / "unet" / "config.json").get("addition_embed_type") != "text_time":
            return None
        prediction = shared.read_json(folder / "scheduler" / "scheduler_config.json").get("prediction_type")
        return {"objective": "v"} if prediction == "v_prediction" else {}

    def recognise_file(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        """Habits of a single checkpoint file if it is an SDXL base, else None."""
        label = shapes.get("model.diffusion_model.label_emb.0.0.weight")
        if label is None or "conditioner.embedders.1.model.ln_final.weight" not in shapes:
            return None
        return {"objective": "v"} if "v_pred" in shapes else {}

    def sections(self, names: Collection[str]) -> tuple[Section, ...]:
        return (
            Section(checkpoints.UNET, "unet", checkpoints.unet_to_ldm, checkpoints.unet_from_ldm),
            Section(checkpoints.VAE, "vae", checkpoints.vae_to_ldm, checkpoints.vae_from_ldm),
            prefixed(checkpoints.CLIP, "text_encoder"),
            Section(checkpoints.OPEN_CLIP, "text_encoder_2", checkpoints.hf_to_open_clip, checkpoints.open_clip_to_hf),
        )

    def markers(self, base: Base) -> tuple[str, ...]:
        """v-prediction, and a schedule that ends in pure noise, are told by tensors of these names."""
        if base.kind == "file":
            return ()
        config = shared.read_json(base.path / "scheduler" / "scheduler_config.json")
        stated = (config.get("prediction_type") == "v_prediction", bool(config.get("rescale_betas_zero_snr")))
        return tuple(name for name, there in zip(checkpoints.MARKERS, stated, strict=True) if there)

    def measures(self, base: Base, height: int, width: int) -> anatomy.Measures:
        configs = shared.configs_of(base, CONFIG)
        net = sdxl_anatomy.anatomy(shared.read_json(configs / "unet" / "config.json"), TOKENS, height // 8, width // 8)
        first, second = (shared.read_json(configs / name / "config.json") for name in FACTS.text_encoders)
        text = (anatomy.clip(first, "text_encoder", projected=False), anatomy.clip(second, "text_encoder_2", projected=True))
        return anatomy.Measures(net, text, *anatomy.vae(shared.read_json(configs / "vae" / "config.json"), height, width))

    def load(self, base: Base, parts: Sequence[Part], dtype: "torch.dtype", device: "torch.device") -> Components:
        """Text encoders and U-Net in `dtype`, the VAE in fp32."""
        found = _read_file(base, parts, dtype) if base.kind == "file" else _read_folder(base, parts, dtype, device)
        for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
            if name in found:
                found[name] = shared.freeze(found[name], device)
        prediction = found["scheduler"].config.prediction_type
        objective = cast(Literal["epsilon", "v"], "v" if prediction == "v_prediction" else "epsilon")
        return Components(base, FACTS, found, dtype, device, objective)

    def encode_images(self, c: Components, pixels: "Tensor") -> "Tensor":
        return shared.encode_pixels(c.parts["vae"], pixels)

    def decode_latents(self, c: Components, latents: "Tensor") -> "Tensor":
        return shared.decode_latents(c.parts["vae"], latents)

    def encode_captions(self, c: Components, captions: Sequence[str]) -> Conditioning:
        """prompt_embeds (B, 77, D): the last layer but one of both encoders; pooled_prompt_embeds (B, D2): the second encoder's projection.

        Of a base that draws away from zeros where there is no negative prompt, an empty caption is all zeros: it is what it was trained with.
        """
        import torch

        hidden = []
        pooled = None
        for part in FACTS.text_encoders:
            output = words.read(c, part, words.tokenize(c, part, captions, TOKENS), output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
            pooled = output[0]
        assert pooled is not None
        found = {"prompt_embeds": torch.cat(hidden, dim=-1), "pooled_prompt_embeds": pooled}
        return _silent(found, captions) if c.parts.get("force_zeros_for_empty_prompt") else found

    def encode_prompt(self, c: Components, prompt: Sequence[Passage], tokens: int = 0) -> Conditioning:
        """Windows of 77 tokens side by side, (1, n * 77, D); what is pooled is the first window, as in A1111."""
        import torch

        hidden = []
        pooled = None
        with torch.no_grad():
            for part in FACTS.text_encoders:
                tokenizer = c.parts[part.replace("text_encoder", "tokenizer")]
                windows = prompts.clip_windows(tokenizer, prompt, words.of(c, part))
                windows += [[] for _ in range(-(-tokens // TOKENS) - len(windows))]
                ids, weights = prompts.clip_batch(tokenizer, windows, c.parts[part].device)
                output = words.read(c, part, ids, output_hidden_states=True)
                hidden.append(prompts.in_a_row(prompts.weighed(output.hidden_states[-2], weights)))
                pooled = output[0][:1]
        assert pooled is not None
        return {"prompt_embeds": torch.cat(hidden, dim=-1), "pooled_prompt_embeds": pooled}

    def predict(self, c: Components, noisy: "Tensor", timesteps: "Tensor", cond: Conditioning, sizes: "Tensor", guidance: float | None = None) -> "Tensor":
        # Sizes and timesteps stay fp32: bf16 has no odd integers above 256.
        added = {"text_embeds": cond["pooled_prompt_embeds"].to(c.dtype), "time_ids": sizes.float()}
        return c.denoiser(
            noisy.to(c.dtype), timesteps.float(), encoder_hidden_states=cond["prompt_embeds"].to(c.dtype), added_cond_kwargs=added, return_dict=False
        )[0]

    def pipeline(self, c: Components) -> "DiffusionPipeline":
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline(**c.parts, add_watermarker=False)


def _silent(found: Conditioning, captions: Sequence[str]) -> Conditioning:
    """Zeros for the captions that say nothing."""
    import torch

    rows = torch.tensor([row for row, caption in enumerate(captions) if not caption.strip()], dtype=torch.long)
    return {name: tensor.index_fill(0, rows.to(tensor.device), 0.0) for name, tensor in found.items()} if len(rows) else found


def _read_file(base: Base, parts: Sequence[Part], dtype: "torch.dtype") -> dict[str, Any]:
    from studio.families import single

    return single.load_sdxl(base, parts, dtype, shared.configs_of(base, CONFIG))


def _read_folder(base: Base, parts: Sequence[Part], dtype: "torch.dtype", device: "torch.device") -> dict[str, Any]:
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    folder = base.path
    index = shared.read_json(folder / "model_index.json")
    found: dict[str, Any] = {
        "scheduler": shared.reading(folder, lambda: EulerDiscreteScheduler.from_pretrained(folder / "scheduler")),
        "force_zeros_for_empty_prompt": bool(index.get("force_zeros_for_empty_prompt", True)),
    }
    if "denoiser" in parts:
        found["unet"] = shared.read_denoiser(UNet2DConditionModel, folder, "unet", dtype, device)
    if "vae" in parts:
        found["vae"] = shared.read_vae(folder, base.vae, CONFIG / "vae")
    if "text" in parts or "clip" in parts:
        found["text_encoder"] = shared.read_model(CLIPTextModel, folder, "text_encoder", dtype)
        found["text_encoder_2"] = shared.read_model(CLIPTextModelWithProjection, folder, "text_encoder_2", dtype)
        for name in ("tokenizer", "tokenizer_2"):
            found[name] = shared.read_tokenizer(CLIPTokenizer, folder, name)
    return found


SDXL = Sdxl()
