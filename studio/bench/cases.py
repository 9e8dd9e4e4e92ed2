"""What is measured: one case is one row of the table."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from studio.errors import SettingsError

REFERENCES = ("plain", "plain-checkpointed")  # a training loop without the studio's machinery
TASKS = ("train", "generate", "memory")
MODES = (*REFERENCES, "eager", "graph", "compile", "fp8", "auto", "run")  # run: `auto` in a whole run, with all that belongs to one


@dataclass(frozen=True)
class Case:
    """task: train or generate. mode: who runs it and how. resolution in pixels."""

    task: str
    family: str
    resolution: int
    batch: int
    precision: str
    mode: str

    @property
    def key(self) -> str:
        return "/".join(str(value) for value in asdict(self).values())


@dataclass(frozen=True)
class Spec:
    """A table to fill. weights: `random` for full-size architectures without a download, `demo`, or the name of a base."""

    families: tuple[str, ...]
    resolutions: tuple[int, ...]
    batches: tuple[int, ...]
    precisions: tuple[str, ...]
    modes: tuple[str, ...]
    tasks: tuple[str, ...]
    weights: str
    steps: int
    rank: int = 16
    budgets: tuple[float, ...] = (0.0,)  # of whole runs within so many GB; 0 is all there is

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Spec":
        """From JSON values. Raises SettingsError for a mode or a number that makes no row."""
        plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        spec = cls(**plain)
        unknown = [mode for mode in spec.modes if mode not in MODES]
        if unknown:
            raise SettingsError(f"mode {unknown[0]!r} is unknown; known are {', '.join(MODES)}")
        strange = [task for task in spec.tasks if task not in TASKS]
        if strange:
            raise SettingsError(f"task {strange[0]!r} is unknown; known are {', '.join(TASKS)}")
        if spec.steps < 1 or min((*spec.resolutions, *spec.batches), default=0) < 1:
            raise SettingsError("steps, resolutions and batches must be 1 or more")
        return spec

    def cases(self) -> Iterator[Case]:
        """Every row of training, those of one family together, so that its base is loaded once."""
        for family, precision, resolution, batch, mode in product(self.families, self.precisions, self.resolutions, self.batches, self.modes):
            if "train" in self.tasks:
                yield Case("train", family, resolution, batch, precision, mode)
