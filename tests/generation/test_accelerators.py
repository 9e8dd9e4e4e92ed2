import pytest

from studio import families
from studio.config import GenerateConfig, build
from studio.generation.accelerators import recognise


@pytest.mark.parametrize(
    ("family", "name", "kind", "steps", "weight"),
    [
        ("sdxl", "sdxl_lightning_8step_lora", "Lightning", 8, 1.0),
        ("sdxl", "Hyper-SDXL-4steps-lora", "Hyper-SD", 4, 1.0),
        ("sdxl", "lcm-lora-sdxl", "LCM", 6, 1.0),
        ("sdxl", "dmd2_sdxl_4step_lora", "DMD2", 4, 1.0),
        ("flux", "Hyper-FLUX.1-dev-8steps-lora", "Hyper-SD", 8, 0.125),
        ("flux", "FLUX.1-Turbo-Alpha", "Turbo", 8, 1.0),
    ],
)
def test_known_accelerators_come_with_settings_that_fit_their_family(family: str, name: str, kind: str, steps: int, weight: float) -> None:
    found = recognise(family, "", name)
    assert (found["kind"], found["settings"]["steps"], found["weight"]) == (kind, steps, weight)
    settings = build(GenerateConfig, found["settings"])
    assert settings.sampler is None or settings.sampler in families.get(family).facts.samplers


@pytest.mark.parametrize("name", ["my-style", "blcmx", "lighthouse", "tcdx", "character_lora"])
def test_other_names_are_no_accelerators(name: str) -> None:
    assert recognise("sdxl", name) == recognise("flux", name) == {}
