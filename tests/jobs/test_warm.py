"""Claims about the base that a worker keeps loaded."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

from studio.errors import FormatError
from studio.families import sources
from studio.families.base import Components
from studio.generation.sampler import open_base
from studio.jobs.handlers import Warm
from studio.lora import formats
from studio.lora.adapter import Adapter, LowRank

LAYER = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def imported() -> None:
    """Libraries are there already: one logs an exception while it is imported, which would hold the frames that load the base."""
    open_base(sources.find("demo-sdxl"), "fp32", torch.device("cpu"))


def test_a_loaded_base_is_out_of_the_collectors_way_and_goes_whole_when_it_is_let_go(imported: None) -> None:
    warm = Warm("cpu")
    try:
        gone = kept(warm)
    finally:
        warm.free()
    assert gc.get_freeze_count() == 0 and gone() is None


def kept(warm: Warm) -> "weakref.ref[object]":
    """The denoiser of a base that was loaded, and asked for once more."""
    base = sources.find("demo-sdxl")

    def load() -> Components:
        return open_base(base, "fp32", torch.device("cpu"))

    loaded = warm.components(base, "fp32", load)
    frozen, modules = gc.get_freeze_count(), {id(module) for module in loaded.denoiser.modules()}
    assert frozen > 0 and modules.isdisjoint(map(id, gc.get_objects()))
    again = warm.components(base, "fp32", load)
    assert again is loaded and gc.get_freeze_count() <= frozen, "a base that is there is not settled again"
    loaded.denoiser.itself = [loaded.denoiser]  # a ring of references, which only the collector takes apart
    return weakref.ref(loaded.denoiser)


def test_files_of_a_stack_are_read_at_once_and_kept_as_long_as_they_stay(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for i, path in enumerate(paths):
        formats.write(Adapter("sdxl", {LAYER: LowRank(torch.full((2, 640), float(i)), torch.ones(640, 2), 2.0)}), path)
    warm = Warm("cpu")
    found = warm.adapters([paths[2], paths[0], paths[2], paths[1]])
    assert [int(one.layers[LAYER].down[0, 0]) for one in found] == [2, 0, 2, 1] and found[0] is found[2]  # type: ignore[union-attr]
    formats.write(Adapter("sdxl", {LAYER: LowRank(torch.full((4, 640), 7.0), torch.ones(640, 4), 2.0)}), paths[0])
    again = warm.adapters(paths)
    assert again[1] is found[3] and again[2] is found[0] and again[0] is not found[1] and again[0].layers[LAYER].rank == 4
    paths[1].write_bytes(b"{}")
    with pytest.raises(FormatError, match=r"1\.safetensors"):
        warm.adapters(paths)
    assert warm.adapters([paths[2]]) == [found[0]] and warm.adapters([]) == []
