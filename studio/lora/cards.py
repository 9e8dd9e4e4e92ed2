"""Texts that go beside a LoRA file: the card that A1111 and Forge read, and what a page on Civitai asks for. Pure."""

import json
from collections.abc import Mapping

from studio.families import FAMILIES
from studio.lora.clients.content import Content
from studio.lora.clients.labels import forge

_FACTS = {
    "Base model": "ss_sd_model_name",
    "Steps": "ss_steps",
    "Epochs": "ss_epoch",
    "Pictures": "ss_num_train_images",
    "Resolution": "modelspec.resolution",
    "Rank": "ss_network_dim",
    "Alpha": "ss_network_alpha",
    "Learning rate": "ss_learning_rate",
    "Schedule": "ss_lr_scheduler",
    "Optimizer": "ss_optimizer",
    "Batch size": "ss_total_batch_size",
    "Seed": "ss_seed",
}


def card(metadata: Mapping[str, str]) -> str:
    """The JSON of a card as A1111's editor stores it."""
    label = forge(Content((), metadata))
    values = {
        "description": metadata.get("modelspec.description", ""),
        "sd version": label if label.startswith("SD") else "Other",
        "activation text": metadata.get("modelspec.trigger_phrase", ""),
        "preferred weight": _weight(metadata),
        "negative text": "",
        "notes": "; ".join(f"{name} {value}" for name, value in training_facts(metadata).items()),
    }
    return json.dumps(values, indent=4, ensure_ascii=False) + "\n"


def civitai_page(stem: str, family: str, metadata: Mapping[str, str]) -> str:
    """What the upload form asks for, and a description to paste, as Markdown."""
    trigger = metadata.get("modelspec.trigger_phrase", "")
    weight = _weight(metadata)
    facts = training_facts(metadata)
    lines = [
        f"# {metadata.get('modelspec.title') or stem}",
        "",
        "| field | value |",
        "| --- | --- |",
        "| Type | LORA |",
        f"| Base model | {civitai_base(family, metadata)} |",
        f"| Trigger words | {_cell(trigger) or 'none: tick that it does not require any'} |",
        f"| Recommended strength | {weight:g} (from {max(0.1, weight - 0.4):.1f} to {weight + 0.2:.1f}) |",
        f"| Epochs | {metadata.get('ss_epoch', '')} |",
        f"| Steps | {metadata.get('ss_steps', '')} |",
        f"| Tags | {_cell(metadata.get('modelspec.tags', ''))} |",
        f"| File | {stem}.safetensors |",
        "",
        "## Description",
        "",
        metadata.get("modelspec.description", "") or f"LoRA for {FAMILIES[family].facts.title}.",
        "",
    ]
    if trigger:
        lines += [f"Write `{trigger}` in the prompt.", ""]
    lines += [f"`<lora:{stem}:{weight:g}>`", ""]
    if facts:
        lines += ["## Training", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    return "\n".join(lines)


def civitai_base(family: str, metadata: Mapping[str, str]) -> str:
    """The base model as Civitai's list calls it."""
    return "Flux.1 S" if "schnell" in metadata.get("modelspec.architecture", "") else FAMILIES[family].facts.civitai_base


def training_facts(metadata: Mapping[str, str]) -> dict[str, str]:
    return {name: metadata[key] for name, key in _FACTS.items() if metadata.get(key) not in (None, "", "None")}


def _weight(metadata: Mapping[str, str]) -> float:
    try:
        return float(metadata.get("modelspec.lora_default_weight", "1"))
    except ValueError:
        return 1.0


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
