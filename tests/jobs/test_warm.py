"""Claims about the base that a worker keeps loaded."""

import gc
import weakref

import pytest
import torch

from studio.families import sources
from studio.families.base import Components
from studio.generation.sampler import open_base
from studio.jobs.handlers import Warm


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
