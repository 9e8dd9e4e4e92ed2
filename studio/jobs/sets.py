"""The image sets of a training job: one, and those that are shown beside it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from studio.config import TrainConfig
from studio.config.training.showing import repeats_of
from studio.data.images import Companion, ImageSet, read_set

MORE, REGULAR = "more:", "regularization:"  # before the name of a set, among the paths of a job


def beside(config: TrainConfig) -> dict[str, str]:
    """Key among the job's paths -> the set as the settings name it."""
    kinds = {MORE: config.more_images, REGULAR: config.regularization_images}
    return {f"{kind}{name}": name for kind, names in kinds.items() for name in repeats_of(names)}


def read_sets(config: TrainConfig, paths: Mapping[str, str]) -> ImageSet:
    """The main set with the others as its companions. Raises ImageError."""
    found = []
    for kind, names in ((MORE, config.more_images), (REGULAR, config.regularization_images)):
        for name, repeats in repeats_of(names).items():
            found.append(Companion(read_set(Path(paths[f"{kind}{name}"])), repeats, regular=kind == REGULAR))
    return replace(read_set(Path(paths["images"])), companions=tuple(found))
