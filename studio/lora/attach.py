"""Put a trainable adapter on a loaded base, read it off again, take it away."""

import re
from typing import TYPE_CHECKING, Any

from studio.errors import FormatError, SettingsError
from studio.families.base import Components
from studio.lora.adapter import Adapter, LowRank

if TYPE_CHECKING:
    from torch import nn

NAME = "trained"  # PEFT keeps adapters in a ModuleDict, where "train" is taken


def attach(c: Components, *, targets: str, rank: int, alpha: float) -> list[str]:
    """Give the denoiser trainable LoRA layers in fp32, all else stays frozen; their module paths. The update is zero at first."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    patterns = c.facts.lora_targets.get(targets)
    if patterns is None:
        raise SettingsError(f"targets {targets!r} is unknown for {c.facts.title}; known are {', '.join(c.facts.lora_targets)}")
    wanted = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    expected = {name for name, module in c.denoiser.named_modules() if wanted.fullmatch(name) and hasattr(module, "weight")}
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=wanted.pattern, lora_dropout=0.0, bias="none")  # type: ignore[arg-type]
    inject_adapter_in_model(config, c.denoiser, adapter_name=NAME)
    found = {name for name, module in c.denoiser.named_modules() if isinstance(module, LoraLayer)}
    if found != expected or not found:
        raise FormatError(f"{c.base.name}: {len(found)} of {len(expected)} layers took a LoRA with targets {targets!r}; is this a {c.facts.title} base?")
    for name, parameter in c.denoiser.named_parameters():
        trainable = f".lora_A.{NAME}." in name or f".lora_B.{NAME}." in name
        parameter.requires_grad_(trainable)
        if trainable:
            parameter.data = parameter.data.float()
    return sorted(f"{c.facts.denoiser}.{name}" for name in found)


def load(c: Components, adapter: Adapter) -> None:
    """Copy the adapter's weights into the attached layers: the same deltas, bit-equal weights where rank and alpha agree.

    A smaller rank is padded with zeros. Raises FormatError if a layer has no place here or too large a rank.
    """
    import torch

    if adapter.family != c.facts.name:
        raise FormatError(f"the LoRA is for {adapter.family}, the base {c.base.name} is {c.facts.title}; choose a base of its family")
    layers = _layers(c)
    unknown = sorted(set(adapter.layers) - set(layers))
    if unknown:
        raise FormatError(f"{len(unknown)} of the LoRA's {len(adapter.layers)} layers are not trained here (first: {unknown[0]}); choose wider targets")
    with torch.no_grad():
        for path, module in layers.items():
            down, up = module.lora_A[NAME].weight, module.lora_B[NAME].weight
            layer = adapter.layers.get(path)
            if layer is None:
                up.zero_()
                continue
            if not isinstance(layer, LowRank):
                raise FormatError(f"{path}: is a {type(layer).__name__.lower()} layer, which training cannot go on from; resize the file to a plain LoRA first")
            if layer.rank > down.shape[0] or layer.down.shape[1:] != down.shape[1:] or layer.up.shape[0] != up.shape[0]:
                raise FormatError(
                    f"{path}: rank {layer.rank}, shape {list(layer.shape)} does not fit rank {down.shape[0]} here; set rank to {layer.rank} or resize the LoRA"
                )
            factor = (layer.alpha / layer.rank) / module.scaling[NAME]
            down[: layer.rank] = layer.down.to(down)
            up.zero_()
            up[:, : layer.rank] = layer.up.to(up) * factor


def collect(c: Components) -> Adapter:
    """The attached adapter as it stands now: a copy on the CPU in fp32."""
    found = {}
    for path, module in _layers(c).items():
        down = module.lora_A[NAME].weight.detach().to("cpu", copy=True).float()
        up = module.lora_B[NAME].weight.detach().to("cpu", copy=True).float()
        found[path] = LowRank(down, up, float(module.lora_alpha[NAME]))
    return Adapter(c.facts.name, found)


def detach(c: Components) -> None:
    """Take the adapter away: the base's own modules are back in their places, untouched."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(c.denoiser.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(c.denoiser.get_submodule(parent), child, module.get_base_layer())
    if hasattr(c.denoiser, "peft_config"):
        del c.denoiser.peft_config


def module_map(c: Components) -> "dict[str, nn.Module]":
    """Canonical module path -> the base's own module with that weight, over denoiser and loaded text encoders."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: dict[str, Any] = {}
    for part in (c.facts.denoiser, *c.facts.text_encoders):
        model = c.parts.get(part)
        if model is None:
            continue
        prefix = _prefix(part, model)
        wrapped: list[str] = []
        for name, module in model.named_modules():
            if any(name.startswith(outer) for outer in wrapped):
                continue
            if isinstance(module, BaseTunerLayer):
                wrapped.append(name + ".")
                module = module.get_base_layer()
            if getattr(module, "weight", None) is not None:
                found[prefix + name] = module
    return found


def parameter_map(c: Components) -> "dict[str, nn.Parameter]":
    """Path of a layer -> the base's own parameter that it changes: a module's weight under its path, its bias under the path and `.bias`."""
    found: dict[str, nn.Parameter] = {}
    for path, module in module_map(c).items():
        found[path] = module.weight  # type: ignore[assignment]
        if getattr(module, "bias", None) is not None:
            found[f"{path}.bias"] = module.bias  # type: ignore[assignment]
    return found


def _prefix(part: str, model: Any) -> str:
    """transformers 5 names the layers of a CLIPTextModel without `text_model.`, which every file format has."""
    flat = type(model).__name__.startswith("CLIPText") and not any(name == "text_model" for name, _ in model.named_children())
    return f"{part}.text_model." if flat else f"{part}."


def _layers(c: Components) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {f"{c.facts.denoiser}.{name}": module for name, module in c.denoiser.named_modules() if isinstance(module, LoraLayer) and NAME in module.lora_A}
