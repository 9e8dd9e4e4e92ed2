"""A base in fewer bits: how much is rounded, that gradients are those of the rounded weights, and that nothing else differs."""

from pathlib import Path

import pytest
import torch
from torch import nn

from studio.config.training.network import Network
from studio.errors import SettingsError
from studio.families import get, quantised, sources
from studio.families.base import Components
from studio.families.quantised import Quantised
from studio.lora import attach

CPU = torch.device("cpu")
# Relative error of normal weights: int8 1 / sqrt(12) of a step of 2.9 sigma / 127; fp8 3 bits of mantissa; nf4 16 quantiles, blocks of 64.
ERROR = {"int8": (0.005, 0.008), "fp8": (0.02, 0.03), "nf4": (0.08, 0.1)}
FORMATS = [*ERROR]


def loaded(base: str) -> Components:
    found = sources.find(base)
    return get(found.family).load(found, ["denoiser"], torch.float32, CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format", FORMATS)
def test_weights_are_rounded_by_as_much_as_the_format_says(format: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(256, 192).to(dtype).requires_grad_(False)
    nn.init.normal_(linear.weight, std=0.02)
    layer = Quantised(linear, format, CPU)
    low, high = ERROR[format]
    assert low < float((layer.weight.float() - linear.weight.float()).norm() / linear.weight.float().norm()) < high
    assert layer.weight.dtype == dtype and sum(b.nbytes for b in layer.buffers()) * 8 / linear.weight.numel() < quantised.BITS[format] + 0.2
    again = Quantised(linear, format, CPU).to(torch.float32).to(dtype)
    torch.testing.assert_close(again.weight, layer.weight, rtol=0.005, atol=0)


@pytest.mark.parametrize("format", FORMATS)
def test_products_and_gradients_are_those_of_the_rounded_weights(format: str) -> None:
    torch.manual_seed(1)
    layer = Quantised(nn.Linear(128, 64), format, CPU)
    plain = nn.Linear(128, 64)
    plain.weight.data, plain.bias.data = layer.weight, layer.bias.data
    one, two = (torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in range(2))
    for x, module in ((one, layer), (two, plain)):
        module(x).square().sum().backward()
    assert one.grad is not None and two.grad is not None
    torch.testing.assert_close(layer(one), plain(two))
    torch.testing.assert_close(one.grad, two.grad)


def test_a_row_of_zeros_stays_zero() -> None:
    linear = nn.Linear(64, 4)
    linear.weight.data[2] = 0
    for format in FORMATS:
        assert torch.equal(Quantised(linear, format, CPU).weight[2], torch.zeros(64))


@pytest.mark.parametrize("network", ["lora", "dora", "loha", "lokr", "adalora"])
@pytest.mark.parametrize(("base", "format"), [("demo-sdxl", "nf4"), ("demo-flux", "int8"), ("demo-flux", "fp8")])
def test_a_network_gets_the_gradients_that_it_gets_on_the_rounded_base_in_full(base: str, format: str, network: str) -> None:
    found = {}
    for reduced in (True, False):
        c = loaded(base)
        n = quantised.quantise(c.denoiser, format, CPU)
        if not reduced:
            for name, module in list(c.denoiser.named_modules()):
                if isinstance(module, Quantised):
                    linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
                    linear.weight.data = module.weight
                    if module.bias is not None:
                        linear.bias.data = module.bias.data
                    parent, _, child = name.rpartition(".")
                    setattr(c.denoiser.get_submodule(parent), child, linear.requires_grad_(False))
        torch.manual_seed(5)
        attached = attach.attach(c, Network.model_validate({"rank": 2, "network": network}))
        before = attach.fingerprint(c)
        noisy = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
        text = sources.find(base)
        full = get(text.family).load(text, ["text"], torch.float32, CPU)
        cond = get(text.family).encode_captions(full, ["cat"])
        get(text.family).predict(c, noisy, torch.tensor([400.0]), cond, torch.tensor([[64, 64, 0, 0, 64, 64]])).square().mean().backward()
        assert n > 20 and attach.fingerprint(c) == before
        found[reduced] = {name: p.grad for name, p in attached.trainable().items()}
    assert any(bool(grad.any()) for grad in found[True].values() if grad is not None)
    for name, grad in found[True].items():
        torch.testing.assert_close(grad, found[False][name], atol=1e-6, rtol=1e-3)


def test_only_layers_of_the_blocks_are_reduced(tmp_path: Path) -> None:
    c = loaded("demo-flux")
    outside = c.denoiser.proj_out.weight.detach().clone()  # type: ignore[union-attr]
    n = quantised.quantise(c.denoiser, "int8", CPU)
    names = [name for name, module in c.denoiser.named_modules() if isinstance(module, Quantised)]
    assert n == len(names) and all("transformer_blocks." in name for name in names)
    assert torch.equal(c.denoiser.proj_out.weight, outside)  # type: ignore[union-attr]


def test_a_missing_package_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="bitsandbytes is not installed; pip install bitsandbytes, or take int8 or fp8"):
        quantised.check("nf4")
    quantised.check("fp8")
