"""Claims about weights on their way to a CUDA device, on the demo bases."""

from pathlib import Path

import pytest
import torch

from studio.families import away, get, offload, parts, quantised, sources, straight
from studio.families.base import Components

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
BASES = ("demo-sdxl", "demo-flux")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("base", BASES)
def test_a_denoiser_read_straight_to_the_device_is_what_the_library_reads(base: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(straight, "CHUNK", 2**16)  # tensors of several chunks
    found = sources.find(base)
    ours, theirs = (get(found.family).load(found, ["denoiser"], dtype, torch.device(name)).denoiser.state_dict() for name in ("cuda", "cpu"))
    assert ours.keys() == theirs.keys()
    assert all(tensor.is_cuda and torch.equal(tensor.cpu(), theirs[name]) for name, tensor in ours.items())


def test_what_is_no_file_of_weights_is_refused_on_the_way_to_the_device_too(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(Exception, match=r"diffusion_pytorch_model\.safetensors"):
        parts.read_denoiser(torch.nn.Linear, tmp_path, "unet", torch.float32, torch.device("cuda"))


def test_text_encoders_that_come_block_by_block_give_the_same_conditioning() -> None:
    device, base = torch.device("cuda"), sources.find("demo-flux")

    def told(c: Components) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            for _ in range(3):  # the order is learnt, then blocks come ahead
                found = get("flux").encode_captions(c, ["a yellow sun", "two owls"])
        return found

    whole = told(get("flux").load(base, ["text"], torch.bfloat16, device))
    c = get("flux").load(base, ["text"], torch.bfloat16, torch.device("cpu"))
    rings = [offload.stream(c.parts[name], device) for name in c.facts.text_encoders]
    assert max(len(ring.blocks) for ring in rings) > away.SLOTS
    assert all(torch.equal(tensor, whole[name]) for name, tensor in told(c).items())
    for ring in rings:
        ring.close()
    assert not any(offload.is_waiting(module) for name in c.facts.text_encoders for module in c.parts[name].modules())


@pytest.mark.parametrize("slots", [2, 3])
@pytest.mark.parametrize("format", ["full", "int8", "fp8", "nf4"])
def test_memory_of_waiting_blocks_leaves_the_device_but_for_the_ring(format: str, slots: int) -> None:
    device, base = torch.device("cuda"), sources.find("demo-flux")
    c = get("flux").load(base, ["denoiser"], torch.bfloat16, torch.device("cpu"))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    if format != "full":
        quantised.quantise(c.denoiser, format, device, torch.device("cpu"))
    waiting = offload.names(c.denoiser, 1.0)
    offload.settle(c.denoiser, waiting, device)
    sizes = {name: tensor.nbytes for name, tensor in (*c.denoiser.named_parameters(), *c.denoiser.named_buffers())}
    ring = offload.wait(c.denoiser, waiting, device, slots=slots)
    largest = max(block.size for block in ring.blocks)
    planned = away.on_device(sizes, 1.0) + (slots - away.SLOTS) * largest
    assert torch.cuda.memory_allocated() - before == pytest.approx(planned, rel=0.1, abs=2**20)
    ring.close()
