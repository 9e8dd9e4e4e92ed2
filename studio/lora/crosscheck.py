"""A LoRA file through diffusers' own loader: what it makes of the file, compared layer by layer with the adapter.

The weights of the models are one zero seen in many places, so a 12 B transformer costs no memory; only the LoRA is real.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.families import FAMILIES, parts, sources
from studio.lora.adapter import Adapter, Decomposed, LowRank
from studio.lora.formats import difference

if TYPE_CHECKING:
    from torch import nn

_PIPELINES = {"sdxl": "StableDiffusionXLPipeline", "flux": "FluxPipeline"}
NAME = "check"


@dataclass(frozen=True)
class Crosscheck:
    """What diffusers did. worst: relative distance of the delta that is furthest off; note: why it was not run, or what was left out."""

    loader: str
    run: bool
    modules: int = 0
    worst: float = 0.0
    worst_module: str = ""
    fault: str = ""
    note: str = ""


def crosscheck(path: Path, adapter: Adapter) -> Crosscheck:
    """Load the file with diffusers and compare."""
    import diffusers

    loader = f"diffusers {diffusers.__version__}"
    if not all(isinstance(layer, LowRank) for layer in adapter.layers.values()):
        kinds = sorted({type(layer).__name__ for layer in adapter.layers.values() if not isinstance(layer, LowRank)})
        what = "DoRA lengths need the base's weights" if kinds == [Decomposed.__name__] else f"{', '.join(kinds)} layers are not compared there"
        return Crosscheck(loader, False, note=f"not run: {what}")
    models = _models(adapter)
    if models is None:
        return Crosscheck(loader, False, note="not run: no base of these widths is known here")
    try:
        _load(path, adapter.family, models)
    except Exception as error:  # whatever it raises is the finding
        return Crosscheck(loader, True, fault=f"raises {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return _compared(loader, adapter, dict(_layers(models)))


def _models(adapter: Adapter) -> dict[str, Any] | None:
    """The parts that the adapter has layers for, of the real model or of a built-in base, whichever has its widths."""
    wanted = {path.partition(".")[0] for path in adapter.layers}
    folders = [parts.CONFIGS / adapter.family, *(base.path for base in sources.builtin() if base.family == adapter.family)]
    for folder in folders:
        denoiser = FAMILIES[adapter.family].facts.denoiser
        encoders = {folder / part: part != denoiser for part in sorted(wanted) if (folder / part / "config.json").is_file()}
        if len(encoders) == len(wanted) and _fits([shapes(path, encoder) for path, encoder in encoders.items()], adapter):
            return {path.name: _model(path, encoder) for path, encoder in encoders.items()}
    return None


@functools.cache
def shapes(folder: Path, encoder: bool) -> Mapping[str, tuple[int, ...]]:
    """Canonical path of every parameter -> its shape. Kept, since building a full-size model only to see that it does not fit takes half a second."""
    model = _model(folder, encoder)
    return {f"{folder.name}.{_named(name, model)}": tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _model(folder: Path, encoder: bool) -> "nn.Module":
    """A model of diffusers, or with `encoder` of transformers, without memory of its own."""
    import diffusers
    import torch
    import transformers

    config = parts.read_json(folder / "config.json")
    with torch.device("meta"):
        if encoder:
            kind = getattr(transformers, config["architectures"][0])
            model = kind(kind.config_class.from_dict(config))
        else:
            model = getattr(diffusers, config["_class_name"]).from_config(config)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # On the meta device the loader would move the LoRA there too.
            setattr(module, name, torch.nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros((), dtype=buffer.dtype).expand(buffer.shape))
    return model


def _fits(parts_shapes: list[Mapping[str, tuple[int, ...]]], adapter: Adapter) -> bool:
    known = {path: shape for part in parts_shapes for path, shape in part.items()}
    return all(known.get(f"{path}.weight") == tuple(layer.shape) for path, layer in adapter.layers.items())


def _named(name: str, model: "nn.Module") -> str:
    """The canonical name: some versions of transformers leave text_model out."""
    return name if hasattr(model, "text_model") or not name.startswith("encoder.layers.") else f"text_model.{name}"


def _load(path: Path, family: str, models: "dict[str, nn.Module]") -> None:
    """As diffusers' pipelines do in load_lora_weights, for these models alone."""
    import diffusers

    pipeline = getattr(diffusers, _PIPELINES[family])
    denoiser = FAMILIES[family].facts.denoiser
    options: dict[str, Any] = {"return_lora_metadata": True}
    if denoiser == "unet":
        state, alphas, metadata = pipeline.lora_state_dict(str(path), unet_config=getattr(models.get(denoiser), "config", None), **options)
    else:
        state, alphas, metadata = pipeline.lora_state_dict(str(path), return_alphas=True, **options)
    shared = {"network_alphas": alphas, "adapter_name": NAME, "metadata": metadata, "low_cpu_mem_usage": True}
    if denoiser in models:
        load = pipeline.load_lora_into_unet if denoiser == "unet" else pipeline.load_lora_into_transformer
        load(state, **{denoiser: models[denoiser]}, **shared)
    for part, model in models.items():
        if part != denoiser:
            pipeline.load_lora_into_text_encoder(state, text_encoder=model, prefix=part, **shared)


def _layers(models: "dict[str, nn.Module]") -> Iterator[tuple[str, LowRank]]:
    """Canonical path and layer of every LoRA that was put into the models, at the strength that it has there."""
    from peft.tuners.lora import LoraLayer
    from torch import nn

    for part, model in models.items():
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer) and isinstance(module, nn.Module):
                scaling: dict[str, float] = vars(module)["scaling"]
                down, up = (module.get_parameter(f"lora_{side}.{NAME}.weight").detach() for side in "AB")
                yield f"{part}.{_named(name, model)}", LowRank(down, up, scaling[NAME] * down.shape[0])


def _compared(loader: str, adapter: Adapter, found: dict[str, LowRank]) -> Crosscheck:
    worst, where = 0.0, ""
    for path in sorted({*adapter.layers, *found}):
        distance = difference(adapter.layers.get(path), found.get(path))
        if distance >= worst:
            worst, where = distance, path
    return Crosscheck(loader, True, len(found), worst, where)
