"""A stack on a base of few bits: beside the weights, which stay as they are."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from studio.families.base import Components
from studio.families.quantised import Quantised, quantise
from studio.generation.stack import Stack
from studio.lora.adapter import delta
from studio.lora.attach import module_map
from tests.generation.conftest import adapter
from tests.generation.test_live import look, near, of_kind


@pytest.mark.parametrize("format", ["nf4", "int8", "fp8"])
def test_a_stack_runs_beside_weights_of_few_bits(c: Components, format: str) -> None:
    own = replace(c, parts={**c.parts, c.facts.denoiser: copy.deepcopy(c.denoiser)}, warm={})
    assert quantise(own.denoiser, format, torch.device("cpu"))
    rows = [(of_kind(c, "low-rank", 1, (".attn",), 5), 0.7), (of_kind(c, "difference", 2, (".attn",), 9), 0.3), (adapter(c, 3, (".attn", "conv1")), -0.4)]
    base, modules = look(own), dict[str, Any](module_map(own))
    packed = {path for path, module in modules.items() if isinstance(module, Quantised)}
    stack = Stack(own)
    found = stack.set(rows)
    touched = {path for one, _ in rows for path in one.layers}
    assert "quantised" in found.reason and found.live == len(packed & touched) > 0 and found.baked == len(touched - packed)
    seen = look(own)
    stack.set([])
    assert torch.equal(look(own), base)

    plain = replace(c, parts={**c.parts, c.facts.denoiser: copy.deepcopy(c.denoiser)}, warm={})
    for path, module in module_map(plain).items():
        weight = modules[path].weight.detach().float()
        total = weight + sum(strength * delta(one.layers[path], weight) for one, strength in rows if path in one.layers)
        with torch.no_grad():
            module.weight.copy_(total)  # type: ignore[operator, union-attr]
    assert near(seen, look(plain), 1e-4) and not near(seen, base, 1e-2)
