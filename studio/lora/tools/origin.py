"""What a file made by a tool says of itself: modelspec and the few `ss_*` that readers sort files by. Pure, the same text for the same input."""

from collections.abc import Mapping, Sequence

from studio import __version__, families
from studio.config import safe_stem
from studio.families.base import Base

_COMMON = (
    "modelspec.prediction_type",
    "modelspec.resolution",
    "modelspec.license",
    "modelspec.author",
    "ss_sd_model_name",
    "ss_base_model_version",
    "modelspec.architecture",
)


def title(metadata: Mapping[str, str], otherwise: str) -> str:
    """What a file calls itself."""
    return metadata.get("modelspec.title") or metadata.get("ss_output_name") or otherwise


def of_adapter(family: str, name: str, sources: Sequence[tuple[str, Mapping[str, str]]], words: str, rank: int) -> dict[str, str]:
    """Metadata of an adapter made from these adapters, each with what its file was called. What all of them say alike stays said."""
    facts = families.get(family).facts
    told = [metadata for _, metadata in sources]
    found = {
        "ss_base_model_version": facts.kohya_version,
        "ss_network_module": facts.kohya_module,
        "ss_network_dim": str(rank) if rank else "Dynamic",
        "ss_network_alpha": str(float(rank)) if rank else "Dynamic",
        "ss_output_name": safe_stem(name),
        "ss_v2": "False",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": facts.modelspec,
        "modelspec.implementation": facts.implementation,
        "modelspec.implementation_version": f"lora-studio/{__version__}",
        "modelspec.title": name,
        "modelspec.description": words,
        "modelspec.merged_from": ", ".join(title(metadata, called) for called, metadata in sources),
    }
    found |= {key: told[0][key] for key in _COMMON if told and all(one.get(key) == told[0].get(key) for one in told) and told[0].get(key)}
    triggers = dict.fromkeys(phrase for one in told if (phrase := one.get("modelspec.trigger_phrase", "")))
    if triggers:
        found["modelspec.trigger_phrase"] = ", ".join(triggers)
    return dict(sorted(found.items()))


def of_checkpoint(base: Base, name: str, titles: Sequence[str]) -> dict[str, str]:
    """Metadata of a base with adapters baked in."""
    facts = families.get(base.family).facts
    objective = str(base.habits.get("objective", facts.objective))
    found = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": str(base.habits.get("modelspec", facts.modelspec)).partition("/")[0],
        "modelspec.implementation": facts.implementation,
        "modelspec.implementation_version": f"lora-studio/{__version__}",
        "modelspec.title": name,
        "modelspec.merged_from": ", ".join([base.title or base.name, *titles]),
    }
    if objective in ("epsilon", "v"):
        found["modelspec.prediction_type"] = objective
    return found
