"""What clients and sharing sites show as the base model of a LoRA file, from its header. Pure."""

import json
from collections.abc import Callable, Mapping

from studio.families import FAMILIES
from studio.lora.clients.content import Content

EMPTY_HASH = "e3b0c44298fc"  # sha256 of nothing, as some trainers wrote
_MANAGED = (("sdxl", "SDXL 1.0"), ("flux1", "Flux.1 D"), ("flux.1", "Flux.1 D"), ("sd_v1", "SD 1.5"), ("sd_v2", "SD 2.1"))
_JSON_OBJECTS = ("ss_bucket_info", "ss_dataset_dirs", "ss_tag_frequency")


def a1111(c: Content) -> str:
    if c.metadata.get("ss_base_model_version", "").startswith("sdxl_"):
        return "SDXL"
    if c.metadata.get("ss_v2") == "True":
        return "SD2"
    return "SD1" if c.metadata else "Unknown"


def forge(c: Content) -> str:
    words = c.metadata
    if words.get("modelspec.implementation") == "https://github.com/black-forest-labs/flux" or words.get("modelspec.architecture") == "flux-1-dev/lora":
        return "Flux"
    return "SDXL" if words.get("modelspec.architecture") == "stable-diffusion-xl-v1-base/lora" else a1111(c)


def probed(c: Content) -> str:
    """InvokeAI's, which looks at tensors alone."""
    return c.family


def swarm(c: Content) -> str:
    """Empty where the header does not say: it guesses from the tensors then."""
    architecture = c.metadata.get("modelspec.architecture", "")
    return next((family.facts.title for family in FAMILIES.values() if family.facts.modelspec == architecture), architecture)


def managed(c: Content) -> str:
    """LoRA Manager's, until Civitai knows the file by its hash."""
    stated = c.metadata.get("ss_base_model_version", "").lower()
    return next((label for part, label in _MANAGED if part in stated), "Unknown")


def chosen(c: Content) -> str:
    return "chosen at upload"


def none(c: Content) -> str:
    return ""


LABELS: Mapping[str, Callable[[Content], str]] = {
    "ComfyUI": none,
    "A1111": a1111,
    "Forge": forge,
    "InvokeAI": probed,
    "sd-scripts": none,
    "diffusers": none,
    "SwarmUI": swarm,
    "LoRA Manager": managed,
    "Civitai": chosen,
}


def hidden(client: str, c: Content) -> str:
    """Why a client does not list the file among those for its base; empty if it does."""
    if client == "A1111" and c.family and a1111(c) in ("SD1", "SD2"):
        return f"is taken for {a1111(c)} because of its header, so the tab hides it; ss_base_model_version must begin with sdxl_"
    return ""


def header_faults(c: Content) -> list[str]:
    """What a manager or sharing site stumbles over in the header."""
    faults = []
    stated = c.metadata.get("sshs_model_hash") or c.metadata.get("modelspec.hash_sha256", "").removeprefix("0x")
    if not stated:
        faults.append("no sshs_model_hash: pictures made with it are not linked to it")
    elif stated.startswith(EMPTY_HASH):
        faults.append("sshs_model_hash is that of an empty file: it links to the LoRA of somebody else")
    elif c.digest and stated != c.digest:
        faults.append("sshs_model_hash is not that of the tensors: pictures are linked to another LoRA")
    for key in _JSON_OBJECTS:
        if key in c.metadata and not _object_of_objects(c.metadata[key]):
            faults.append(f"{key} is not a JSON object of objects: card editors fail on it")
    if "ss_datasets" in c.metadata and not isinstance(_json(c.metadata["ss_datasets"]), list):
        faults.append("ss_datasets is not a JSON list")
    return faults


def _object_of_objects(text: str) -> bool:
    value = _json(text)
    return isinstance(value, dict) and all(isinstance(item, dict | float | int) for item in value.values())


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None
