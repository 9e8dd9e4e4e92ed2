"""The demo bases, loaded once for all tests of a module."""

import pytest
import torch

from studio.families import get, sources
from studio.families.base import Components

ALL = ("denoiser", "vae", "text")


def load(name: str) -> Components:
    base = sources.find(name)
    return get(base.family).load(base, ALL, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def sdxl() -> Components:
    return load("demo-sdxl")


@pytest.fixture(scope="module")
def flux() -> Components:
    return load("demo-flux")
