"""What was exported, read by programs that we did not write: LyCORIS for LoHa, LoKr and DoRA, diffusers with PEFT for DoRA.

LoRA, rsLoRA, PiSSA, OLoRA and AdaLoRA leave as plain LoRA files, which diffusers reads back within every proof of an export.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from studio.families.base import Components
from studio.lora import attach, formats, proof
from studio.lora.adapter import Adapter, Decomposed, delta
from studio.lora.formats import names
from studio.lora.header import completed

from .conftest import load
from .test_networks import KINDS, predict, put, stir


def trained(c: Components, kind: str, targets: str) -> Adapter:
    attached = put(c, targets=targets, **KINDS[kind])
    stir(attached)
    try:
        return attach.collect(attached)
    finally:
        attach.detach(c)


def exported(adapter: Adapter, folder: Path, format: str = "kohya") -> Path:
    file = folder / f"{format}.safetensors"
    formats.write(adapter, file, format=format, dtype="fp32", metadata=completed({}, adapter, "x"))  # type: ignore[arg-type]
    return file


@pytest.mark.parametrize("targets", ["attention", "full+conv"])
@pytest.mark.parametrize("base", ["demo-sdxl", "demo-flux"])
@pytest.mark.parametrize("kind", [*(pytest.param(kind, marks=pytest.mark.long) for kind in ("lora", "pissa", "adalora")), "loha", "lokr", "dora"])
def test_lycoris_makes_the_same_delta_of_the_file(tmp_path: Path, base: str, kind: str, targets: str) -> None:
    from lycoris import modules  # here, because it takes seconds to import

    c = load(base)
    adapter = trained(c, kind, targets)
    tensors = load_file(exported(adapter, tmp_path))
    weights = attach.parameter_map(c)
    seen = set()
    for name in sorted({key.partition(".")[0] for key in tensors}):
        target = names.target(name)
        assert target is not None
        parts = [(adapter.layers.get(path), weights[path].detach()) for path in target.paths]
        expected = torch.cat([torch.zeros_like(weight) if layer is None else delta(layer, weight) for layer, weight in parts])
        own = attach.module_map(c)[target.paths[0]]
        if len(target.paths) > 1:  # what the makers keep as one matrix
            own = nn.Linear(expected.shape[1], expected.shape[0])
            own.weight.data = torch.cat([weights[path].detach() for path in target.paths])
        found, parameters = modules.get_module(tensors, name)
        layer = modules.make_module(found, parameters, name, own)
        if isinstance(adapter.layers[target.paths[0]], Decomposed):
            theirs = layer.get_merged_weight(1.0)[0] - own.weight
        else:
            # What its forward pass adds; get_diff_weight of LyCORIS 4.1.3 multiplies LoHa and LoKr by alpha / rank once more.
            theirs = layer.get_weight(own.weight.shape) if kind in ("loha", "lokr") else layer.get_diff_weight(1.0)[0]
        error = (theirs.reshape(expected.shape) - expected).norm() / expected.norm()
        assert float(error) < (2e-5 if kind == "dora" else 1e-6), name  # a DoRA's delta is a small difference of large numbers
        seen |= set(target.paths) & set(adapter.layers)
    assert seen == set(adapter.layers)


@pytest.mark.parametrize("base", ["demo-sdxl", "demo-flux"])
def test_diffusers_predicts_with_an_exported_dora_what_we_do(tmp_path: Path, base: str) -> None:
    c = load(base)
    before = predict(c)
    adapter = trained(c, "dora", "attention")
    weights = attach.parameter_map(c)
    kept = {path: weights[path].detach().clone() for path in adapter.layers}
    with torch.no_grad():
        for path, layer in adapter.layers.items():
            weights[path] += delta(layer, kept[path])
        expected = predict(c)
        for path, weight in kept.items():
            weights[path].copy_(weight)
    c.denoiser.load_lora_adapter(load_file(exported(adapter, tmp_path, "peft")), prefix=c.facts.denoiser)  # type: ignore[operator]
    torch.testing.assert_close(predict(c), expected, atol=2e-4, rtol=1e-3)
    assert not torch.allclose(before, expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["rslora", "pissa", "adalora", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("lora", "gaussian", "olora"))])
def test_what_leaves_as_a_plain_lora_is_read_back_by_diffusers(tmp_path: Path, sdxl: Components, flux: Components, kind: str) -> None:
    for c in (sdxl, flux):
        adapter = trained(c, kind, "attention")
        report = proof.prove(exported(adapter, tmp_path, "peft"), adapter, "peft")
        theirs = report["loaders"][-1]
        assert report["passed"] and theirs["run"] and theirs["modules"] == len(adapter.layers) and theirs["worst"] < 1e-6


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_what_diffusers_cannot_read_is_said(tmp_path: Path, sdxl: Components, kind: str) -> None:
    adapter = trained(sdxl, kind, "full+conv")  # InvokeAI tells a base of so few blocks by its time embedding alone
    verdicts = {row["client"]: row for row in proof.prove(exported(adapter, tmp_path), adapter, "kohya")["clients"]}
    assert verdicts["diffusers"]["loads"] == "no" and verdicts["sd-scripts"]["loads"] == "no"
    assert all(verdicts[client]["good"] for client in ("ComfyUI", "A1111", "Forge", "InvokeAI"))
