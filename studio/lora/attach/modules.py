"""A base's own modules under the names that adapters call them by, whatever is wrapped around them."""

from typing import TYPE_CHECKING, Any

from studio.families.base import Components

if TYPE_CHECKING:
    from torch import nn


def module_map(c: Components) -> "dict[str, nn.Module]":
    """Canonical module path -> the base's own module with that weight, over denoiser and loaded text encoders."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: dict[str, Any] = {}
    for part in (c.facts.denoiser, *c.facts.text_encoders):
        model = c.parts.get(part)
        if model is None:
            continue
        before = prefix(part, model)
        wrapped: list[str] = []
        for name, module in model.named_modules():
            if any(name.startswith(outer) for outer in wrapped):
                continue
            if isinstance(module, BaseTunerLayer):
                wrapped.append(name + ".")
                module = module.get_base_layer()
            if getattr(module, "weight", None) is not None:
                found[before + name] = module
    return found


def parameter_map(c: Components) -> "dict[str, nn.Parameter]":
    """Path of a layer -> the base's own parameter that it changes: a module's weight under its path, its bias under the path and `.bias`."""
    found: dict[str, nn.Parameter] = {}
    for path, module in module_map(c).items():
        found[path] = module.weight  # type: ignore[assignment]
        if getattr(module, "bias", None) is not None:
            found[f"{path}.bias"] = module.bias  # type: ignore[assignment]
    return found


def prefix(part: str, model: Any) -> str:
    """What stands before a module's name; transformers 5 names the layers of a CLIPTextModel without `text_model.`, which every file format has."""
    flat = type(model).__name__.startswith("CLIPText") and not any(name == "text_model" for name, _ in model.named_children())
    return f"{part}.text_model." if flat else f"{part}."
