"""The base alone under an attached adapter, for as long as it is needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def bare(*models: "nn.Module") -> "Iterator[None]":
    """Within, the models answer as if no adapter were attached: eval mode, no gradients. Adapters that changed the base's own weights stay seen."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [module for model in models for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer._disable_adapters for layer in layers]
    training = [model.training for model in models]
    try:
        for layer in layers:
            layer._disable_adapters = True  # enable_adapters() would also stop the gradients of their weights, for good
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer._disable_adapters = was
        for model, was in zip(models, training, strict=True):
            model.train(was)
