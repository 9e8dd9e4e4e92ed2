"""Claims about training on a CUDA device, on the demo bases."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from studio.events import Sample
from studio.training import checkpoint

from .test_loop import BASES, told

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture
def gpu(studio):
    return replace(studio, device="cuda")


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_the_loss_falls_and_follows_the_cpu(studio, gpu, tmp_path, base, precision):
    on_gpu = told(gpu.run(gpu.config(base, precision=precision, steps=40, batch_size=3, rank=16), tmp_path / "gpu"))
    losses = [step[1] for step in on_gpu]
    assert sum(losses[-15:]) < 0.8 * sum(losses[:15])
    # The first step has no learned difference yet: only the number format differs.
    on_cpu = told(studio.run(studio.config(base, precision="fp32", steps=1, batch_size=3, rank=16), tmp_path / "cpu"))
    assert losses[0] == pytest.approx(on_cpu[0][1], rel=0.03)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_resuming_follows_an_unbroken_run(gpu, tmp_path, precision):
    straight = told(gpu.run(gpu.config(precision=precision, steps=8, save_every=4), tmp_path / "a"))
    middle = str(tmp_path / "a" / "checkpoints" / "step-000004")
    again = told(gpu.run(gpu.config(precision=precision, steps=8, start_from=middle), tmp_path / "b"))
    assert [step[1] for step in again] == pytest.approx([step[1] for step in straight[4:]], rel=1e-3)
    weights = load_file(checkpoint.verify(tmp_path / "b" / "checkpoints" / "step-000008").adapter)
    assert {tensor.dtype for name, tensor in weights.items() if not name.endswith(".alpha")} == {torch.float32}


def test_previews_borrow_the_device_and_nothing_stays_on_it(gpu, tmp_path):
    before = torch.cuda.memory_allocated()
    lent = []

    def preview(c, step, folder):
        lent.append((c.parts["vae"], c.parts["text_encoder"]))
        assert all(next(part.parameters()).device.type == "cuda" for part in lent[-1])
        yield Sample(step=step, path="samples/1.png", prompt="p", seed=1)

    list(gpu.run(gpu.config(steps=2, sample_every=1), tmp_path, preview=preview))
    assert len(lent) == 2 and lent[0] == lent[1]
    assert all(next(part.parameters()).device.type == "cpu" for part in lent[-1])
    lent.clear()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() - before < 2**20
