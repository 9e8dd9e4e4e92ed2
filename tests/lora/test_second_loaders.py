"""What was exported, read by programs that we did not write: LyCORIS for LoHa, LoKr and DoRA, diffusers with PEFT for DoRA.

LoRA, rsLoRA, PiSSA, OLoRA and AdaLoRA leave as plain LoRA files, which diffusers reads back within every proof of an export.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from studio.families import sources
from studio.families.base import Components
from studio.lora import attach, formats, proof
from studio.lora.adapter import Adapter, delta
from studio.lora.header import completed

from .conftest import load
from .second_loader import lycoris
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
    adapter = trained(load(base), kind, targets)
    # A DoRA's delta is a small difference of large numbers.
    assert lycoris(exported(adapter, tmp_path), adapter, sources.find(base)) < (2e-5 if kind == "dora" else 1e-6)


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
