"""The registry of base-model architectures: one line each. Importing it needs no torch."""

from studio.errors import SettingsError
from studio.families.base import Family
from studio.families.flux import FLUX
from studio.families.sdxl import SDXL

FAMILIES: dict[str, Family] = {"sdxl": SDXL, "flux": FLUX}


def get(name: str) -> Family:
    """The family of that name. Raises SettingsError naming the known ones."""
    try:
        return FAMILIES[name]
    except KeyError:
        raise SettingsError(f"unknown model family {name!r}; known are {', '.join(FAMILIES)}") from None
