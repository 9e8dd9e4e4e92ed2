"""Exported files read by programs that we did not write: the largest relative error of what they make of any layer."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from studio.families import get
from studio.families.base import Base, Components
from studio.lora import attach, formats
from studio.lora.adapter import Adapter, Decomposed, Hadamard, Kronecker, delta
from studio.lora.formats import names
from studio.lora.header import completed


def lycoris(file: Path, adapter: Adapter, base: Base) -> float:
    """LyCORIS' layers from a kohya file against the adapter's differences. Raises AssertionError if a layer is left out."""
    from lycoris import modules  # here, because it takes seconds to import

    c = _loaded(adapter, base)
    tensors, weights, own_modules = load_file(file), attach.parameter_map(c), attach.module_map(c)
    worst, seen = 0.0, set[str]()
    for name in sorted({key.partition(".")[0] for key in tensors}):
        target = names.target(name)
        assert target is not None, name
        parts = [(adapter.layers.get(path), weights[path].detach()) for path in target.paths]
        expected = torch.cat([torch.zeros_like(weight) if layer is None else delta(layer, weight) for layer, weight in parts])
        own = own_modules[target.paths[0]]
        if len(target.paths) > 1:  # what the makers keep as one matrix
            own = nn.Linear(expected.shape[1], expected.shape[0])
            own.weight.data = torch.cat([weights[path].detach() for path in target.paths])
        found, parameters = modules.get_module(tensors, name)
        layer = modules.make_module(found, parameters, name, own)
        kind = adapter.layers[target.paths[0]]
        if isinstance(kind, Decomposed):
            theirs = layer.get_merged_weight(1.0)[0] - own.weight
        else:
            # What its forward pass adds; get_diff_weight of LyCORIS 4.1.3 multiplies LoHa and LoKr by alpha / rank once more.
            theirs = layer.get_weight(own.weight.shape) if isinstance(kind, Hadamard | Kronecker) else layer.get_diff_weight(1.0)[0]
        size = float(expected.norm())
        error = float((theirs.detach().reshape(expected.shape) - expected).norm())
        worst = max(worst, error / size if size else error)
        seen |= set(target.paths) & set(adapter.layers)
    assert seen == set(adapter.layers), f"{len(set(adapter.layers) - seen)} layers were left out"
    return worst


def peft(file: Path, adapter: Adapter, base: Base) -> float:
    """The layers that PEFT holds after diffusers has loaded a peft file, against the adapter's differences."""
    from peft.tuners.lora import LoraLayer

    if any(isinstance(layer, Hadamard | Kronecker) for layer in adapter.layers.values()):
        raise TypeError("the peft format has no LoHa and no LoKr")
    c = _loaded(adapter, base)
    weights = {path: weight.detach().clone() for path, weight in attach.parameter_map(c).items()}
    written = file.with_name("peft.safetensors")
    formats.write(adapter, written, format="peft", dtype="fp32", metadata=completed({}, adapter, "peft"))
    c.denoiser.load_lora_adapter(load_file(written), prefix=c.facts.denoiser)  # type: ignore[operator]
    own = {f"{c.facts.denoiser}.{name}": module for name, module in c.denoiser.named_modules() if isinstance(module, LoraLayer)}
    wanted = {path: layer for path, layer in adapter.layers.items() if path.startswith(f"{c.facts.denoiser}.")}
    assert wanted.keys() <= own.keys(), f"{len(wanted.keys() - own.keys())} layers were left out"
    worst = 0.0
    for path, layer in wanted.items():
        module, expected = own[path], delta(layer, weights[path])
        active = module.active_adapters[0]
        if isinstance(layer, Decomposed):
            module.merge()  # type: ignore[operator]
            theirs = module.get_base_layer().weight.detach() - weights[path]
        else:
            theirs = module.get_delta_weight(active).detach()  # type: ignore[operator]
        size = float(expected.norm())
        error = float((theirs.reshape(expected.shape) - expected).norm())
        worst = max(worst, error / size if size else error)
    return worst


def _loaded(adapter: Adapter, base: Base) -> Components:
    return get(base.family).load(base, ("denoiser", "vae", "text"), torch.float32, torch.device("cpu"))
