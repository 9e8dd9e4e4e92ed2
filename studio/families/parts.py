"""Load the parts of a base from disk, frozen: the work that every family shares."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.errors import BaseError

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL
    from torch import Tensor, nn

    from studio.families.base import Base

CONFIGS = Path(__file__).parent / "configs"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a base model. Raises BaseError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaseError(f"{path.parent}: {path.name} is missing; is the model folder complete?") from None
    except (OSError, ValueError) as error:
        raise BaseError(f"{path}: cannot be read ({error}); download the model again") from None
    if not isinstance(value, dict):
        raise BaseError(f"{path}: is not a JSON object; download the model again")
    return value


def configs_of(base: "Base", usual: Path) -> Path:
    """The folder with the configs of all parts of a base: its own, or for a single file the one that its habits name, else the usual."""
    from studio.families.sources import BUILTIN

    if base.path.is_dir():
        return base.path
    name = base.habits.get("architecture")
    return BUILTIN / name if name else usual


def freeze(model: Any, device: "torch.device") -> Any:
    """The model on that device, in eval mode and without gradients."""
    return model.requires_grad_(False).eval().to(device)


def read_denoiser(kind: Any, folder: Path, part: str, dtype: "torch.dtype", device: "torch.device") -> Any:
    """The denoiser of a diffusers folder in `dtype`; straight to the device where that is a GPU, else to main memory."""
    if device.type != "cuda" or not (folder / part / "config.json").is_file():
        return read_model(kind, folder, part, dtype)
    from studio.families import single, straight
    from studio.families.stored import weight_files

    state = straight.read(weight_files(folder, part), dtype, device)
    return single.filled(folder / part, lambda: kind.from_config(read_json(folder / part / "config.json")), state)


def read_model(kind: Any, folder: Path, part: str, dtype: "torch.dtype") -> Any:
    """One model of a diffusers folder in `dtype`, whatever it is stored in (fp16 variants and float8 included)."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    where = folder / part
    if not (where / "config.json").is_file():
        raise BaseError(f"{folder}: has no {part}/config.json; a diffusers folder with all parts is needed")
    weights = [path.name for path in where.glob("*.safetensors")]
    plain = any(".fp16." not in name for name in weights)
    variant = "fp16" if weights and not plain else None
    return reading(where, lambda: kind.from_pretrained(where, dtype=dtype, variant=variant, local_files_only=True, use_safetensors=True))


def read_tokenizer(kind: Any, folder: Path, part: str) -> Any:
    where = folder / part
    if not where.is_dir():
        raise BaseError(f"{folder}: has no {part} folder; a diffusers folder with all parts is needed")
    return reading(where, lambda: kind.from_pretrained(where, local_files_only=True))


def reading(where: Path, act: Callable[[], Any]) -> Any:
    """Run a library's loader; what it raises becomes one line that names the file."""
    from safetensors import SafetensorError

    try:
        return act()
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if "out of memory" in str(error):
            raise
        text = " ".join(str(error).split())
        raise BaseError(f"{where}: cannot be loaded: {text[:200]}; check that the files are complete and of the right kind") from error


def read_vae(base_folder: Path, other: Path | None, config: Path) -> "AutoencoderKL":
    """The VAE in fp32: the base's own or the one named instead. It overflows in fp16 (SDXL) and bf16 costs detail.

    config: folder with the config.json for a VAE that is a single file.
    """
    import torch
    from diffusers import AutoencoderKL

    if other is not None and other.is_file():
        from studio.families import single

        vae = single.read_vae(other, config)
    elif other is not None and (other / "config.json").is_file():
        vae = read_model(AutoencoderKL, other.parent, other.name, torch.float32)
    else:
        vae = read_model(AutoencoderKL, other or base_folder, "vae", torch.float32)
    return accept_half_precision(vae)


def accept_half_precision(vae: "AutoencoderKL") -> "AutoencoderKL":
    """Pipelines hand latents of the denoiser's precision to the fp32 VAE; it widens them itself."""
    for module in (vae.post_quant_conv, vae.decoder):
        if module is not None:
            module.register_forward_pre_hook(_widen)
    return vae


def _widen(module: "nn.Module", args: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters()).dtype
    return (args[0].to(dtype), *args[1:])


def encode_pixels(vae: "AutoencoderKL", pixels: "Tensor") -> "Tensor":
    """(B, 3, H, W) in [-1, 1] -> normalised latents (B, C, h, w) in fp32, the mode of the posterior."""
    import torch

    first = next(vae.parameters())
    with torch.no_grad():
        latents = vae.encode(pixels.to(first.device, first.dtype)).latent_dist.mode().float()  # type: ignore[union-attr]
    config: Any = vae.config
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        mean, std = (torch.tensor(value, device=latents.device).view(1, -1, 1, 1) for value in (mean, std))
        return (latents - mean) * config.scaling_factor / std
    return (latents - (config.shift_factor or 0.0)) * config.scaling_factor


def decode_latents(vae: "AutoencoderKL", latents: "Tensor") -> "Tensor":
    """The inverse of `encode_pixels`: normalised latents (B, C, h, w) -> pixels (B, 3, H, W) in fp32."""
    import torch

    first = next(vae.parameters())
    config: Any = vae.config
    latents = latents.to(first.device, torch.float32)
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        mean, std = (torch.tensor(value, device=latents.device).view(1, -1, 1, 1) for value in (mean, std))
        latents = latents * std / config.scaling_factor + mean
    else:
        latents = latents / config.scaling_factor + (config.shift_factor or 0.0)
    with torch.no_grad():
        return vae.decode(latents.to(first.dtype), return_dict=False)[0].float()  # type: ignore[index]


def tokenize(tokenizer: Any, captions: Sequence[str], length: int, device: "torch.device") -> "Tensor":
    """Token ids (B, length), cut and padded."""
    found = tokenizer(list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return found.input_ids.to(device)
