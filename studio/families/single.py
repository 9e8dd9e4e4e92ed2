"""Load a base from one .safetensors file, offline: architectures and the CLIP tokenizer ship with the project."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.errors import BaseError
from studio.families import checkpoints
from studio.families import parts as shared
from studio.families.base import Base, Part

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL
    from torch import Tensor

TOKENIZER = shared.CONFIGS / "clip_tokenizer"


class Tensors:
    """The tensors of a file, read one by one."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path = path
        self.names = tuple(file.keys())
        self._file = file

    def under(self, prefix: str, dtype: "torch.dtype") -> "dict[str, Tensor]":
        """Those whose name begins so, without that beginning, in `dtype`; integer tensors (position ids) are left out."""
        found = {name[len(prefix) :]: self._file.get_tensor(name) for name in self.names if name.startswith(prefix)}
        return {name: tensor.to(dtype) for name, tensor in found.items() if tensor.is_floating_point()}


@contextmanager
def opened(path: Path) -> Iterator[Tensors]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield Tensors(path, file)
    except (SafetensorError, OSError) as error:
        raise BaseError(f"{path.name}: cannot be read ({error}); copy or download it again") from None


def load_sdxl(base: Base, parts: Sequence[Part], dtype: "torch.dtype", configs: Path = shared.CONFIGS / "sdxl") -> dict[str, Any]:
    """The named parts of an SDXL checkpoint by their names in the pipeline."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    with opened(base.path) as file:
        found: dict[str, Any] = {"scheduler": _sdxl_scheduler(file.names, configs), "force_zeros_for_empty_prompt": _empty_is_zero(configs)}
        if "denoiser" in parts:
            state = _renamed(base.path, checkpoints.unet_from_ldm, file.under(checkpoints.UNET, dtype))
            found["unet"] = filled(base.path, lambda: UNet2DConditionModel.from_config(shared.read_json(configs / "unet" / "config.json")), state)
        if "vae" in parts:
            found["vae"] = shared.read_vae(base.path, base.vae or base.path, configs / "vae")
        if "text" in parts or "clip" in parts:
            first = file.under(checkpoints.CLIP, dtype)
            second = _renamed(base.path, checkpoints.open_clip_to_hf, file.under(checkpoints.OPEN_CLIP, dtype))
            found["text_encoder"] = _clip(base, CLIPTextModel, configs / "text_encoder", first)
            found["text_encoder_2"] = _clip(base, CLIPTextModelWithProjection, configs / "text_encoder_2", second)
            found["tokenizer"] = _tokenizer(configs / "tokenizer", "<|endoftext|>")
            found["tokenizer_2"] = _tokenizer(configs / "tokenizer_2", "!")
    return found


def load_flux(base: Base, parts: Sequence[Part], dtype: "torch.dtype", configs: Path = shared.CONFIGS / "flux") -> dict[str, Any]:
    """The transformer from the file, the other parts from the folder that `encoders` names."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    from studio.families import flux

    others: list[Part] = [part for part in parts if part != "denoiser"]
    folder = base.encoders or (configs if "architecture" in base.habits else None)
    if folder is None and any(part in ("text", "clip") or base.vae is None for part in others):
        raise BaseError(f"{base.path.name}: holds the transformer alone; name with --encoders a FLUX.1 folder that text encoders and VAE come from")
    found: dict[str, Any] = {}
    if folder is not None:
        found |= flux.read_folder(folder, base.vae, others, dtype, torch.device("cpu"))
    elif "vae" in others:
        found["vae"] = shared.read_vae(base.path, base.vae, configs / "vae")
    if "denoiser" in parts:
        with opened(base.path) as file:
            prefix = checkpoints.UNET if any(name.startswith(checkpoints.UNET) for name in file.names) else ""
            state = file.under(prefix, dtype)
        if not prefix:
            state = {name: tensor for name, tensor in state.items() if not name.startswith(("vae.", "text_encoders."))}
        config = {**shared.read_json(configs / "transformer" / "config.json"), **_flux_size(state)}
        renamed = _renamed(base.path, checkpoints.flux_from_original, state)
        found["transformer"] = filled(base.path, lambda: FluxTransformer2DModel.from_config(config), renamed)
    # The shift belongs to the transformer: schnell has none, whatever its encoders came with.
    scheduler = shared.read_json(configs / "scheduler" / "scheduler_config.json")
    if base.habits.get("text_tokens") == flux.SCHNELL_TOKENS:
        scheduler |= {"shift": 1.0, "use_dynamic_shifting": False}
    found["scheduler"] = FlowMatchEulerDiscreteScheduler.from_config(scheduler)
    return found


def read_vae(path: Path, config: Path) -> "AutoencoderKL":
    """The VAE in a file of its own or within a checkpoint, in the original's names or in diffusers', in fp32."""
    import torch
    from diffusers import AutoencoderKL

    with opened(path) as file:
        prefix = next((prefix for prefix in (checkpoints.VAE, "vae.") if any(name.startswith(prefix) for name in file.names)), "")
        state = file.under(prefix, torch.float32)
    if any(name.startswith("encoder.down.") for name in state):
        state = _renamed(path, checkpoints.vae_from_ldm, state)
    return filled(path, lambda: AutoencoderKL.from_config(shared.read_json(config / "config.json")), state)


def _flux_size(state: "dict[str, Tensor]") -> dict[str, Any]:
    """Depth and guidance as the file has them; trimmed variants have fewer blocks."""
    double = {name.split(".")[1] for name in state if name.startswith("double_blocks.")}
    single = {name.split(".")[1] for name in state if name.startswith("single_blocks.")}
    return {"num_layers": len(double), "num_single_layers": len(single), "guidance_embeds": "guidance_in.in_layer.weight" in state}


def _empty_is_zero(configs: Path) -> bool:
    """Whether an empty negative prompt is conditioning of zeros, as it is for the original SDXL."""
    index = configs / "model_index.json"
    return bool(shared.read_json(index).get("force_zeros_for_empty_prompt", True)) if index.is_file() else True


def _sdxl_scheduler(names: Sequence[str], configs: Path) -> Any:
    """With the prediction type that marker tensors of the file state."""
    from diffusers import EulerDiscreteScheduler

    config = shared.read_json(configs / "scheduler" / "scheduler_config.json")
    if "v_pred" in names:
        config["prediction_type"] = "v_prediction"
    if "ztsnr" in names:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return EulerDiscreteScheduler.from_config(config)


def _renamed(path: Path, rename: "Callable[[dict[str, Tensor]], dict[str, Tensor]]", tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    try:
        return rename(tensors)
    except KeyError as error:
        raise BaseError(f"{path.name}: holds a tensor {error} that this architecture has not; is it another kind of model?") from None


def filled(path: Path, build: Callable[[], Any], state: "dict[str, Tensor]") -> Any:
    """The model that `build` makes, with these weights and no others; its own are never allocated."""
    import torch

    with torch.device("meta"):
        model = build()
    try:
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise BaseError(f"{path.name}: {' '.join(str(error).split())[:200]}; the file is of another size than its kind") from None
    wrong = [*missing, *unexpected]
    if wrong:
        raise BaseError(f"{path.name}: {len(missing)} tensors of {type(model).__name__} are missing, {len(unexpected)} are unknown (first: {wrong[0]})")
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:  # only position ids are left out of files
            owner, _, attribute = name.rpartition(".")
            model.get_submodule(owner).register_buffer(attribute, torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False)
    return model


def _clip(base: Base, kind: Any, config: Path, state: "dict[str, Tensor]") -> Any:
    """transformers 5 names the layers of a CLIPTextModel without `text_model.`, every file has it."""
    import torch
    from transformers import CLIPTextConfig

    settings = CLIPTextConfig.from_pretrained(config)
    with torch.device("meta"):
        flat = not any(name.startswith("text_model.") for name, _ in kind(settings).named_parameters())
    if flat:
        state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    return filled(base.path, lambda: kind(settings), state)


def _tokenizer(own: Path, pad: str) -> Any:
    from transformers import CLIPTokenizer

    if own.is_dir():
        return CLIPTokenizer.from_pretrained(own, local_files_only=True)
    return CLIPTokenizer.from_pretrained(TOKENIZER, pad_token=pad, local_files_only=True)
