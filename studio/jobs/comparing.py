"""The rows of a stack held against each other and against a base, from files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.families.base import Base
from studio.jobs import exporting
from studio.jobs.spec import CheckConfig

if TYPE_CHECKING:
    from studio.lora.adapter import Adapter


def compared(config: CheckConfig, files: Sequence[Path], base: Base | None) -> dict[str, Any]:
    """What `interference.check` finds about the rows, whose adapters are in `files`, and `fits`: how each fits the base, in words."""
    from studio.evaluation import interference

    adapters = [exporting.adapter_of(path) for path in files]
    names = [Path(row.name).stem if row.name.endswith(".safetensors") else row.name for row in config.loras]
    found = interference.check(list(zip(adapters, config.loras, strict=True)), names).values
    return {**found, "fits": _fits(base, dict(zip(names, adapters, strict=True))) if base else {}}


def _fits(base: Base, adapters: "Mapping[str, Adapter]") -> dict[str, str]:
    from studio.families import stored
    from studio.lora import formats

    with stored.opened(base) as weights:
        shapes = {name.removesuffix(".weight"): shape for name, shape in weights.shapes.items()}
    return {name: formats.report(adapter, shapes).summary for name, adapter in adapters.items()}
