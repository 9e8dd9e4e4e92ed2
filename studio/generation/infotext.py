"""The text inside a picture: A1111 `parameters`, which A1111, Forge and Civitai read, and our own JSON, which restores settings exactly."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from studio import __version__
from studio.config import GenerateConfig, build, safe_stem
from studio.errors import SettingsError
from studio.generation import prompt as prompts

CHUNK, VERSION = "lora_studio", 1
HASH_DIGITS = 12  # of sshs_model_hash: Civitai's AutoV3, compared exactly
NOTHING = "e3b0c44298fc"  # sha256 of no bytes, written by mistake in the wild; it would point at someone else's model
_NEGATIVE = "Negative prompt: "
_FIELD = re.compile(r'\s*(\w[\w \-/]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_HASHES = re.compile(r",?\s*\bHashes: (\{[^{}]*\})")
_CIVITAI = re.compile(r",?\s*\bCivitai (?:resources: \[.*?\]|metadata: \{.*?\})(?=,|$)", re.DOTALL)


@dataclass(frozen=True)
class Used:
    """An adapter as it took part in a picture. hash: sshs_model_hash of its file, any length; empty if unknown."""

    name: str
    weight: float
    hash: str = ""
    civitai: int = 0  # the version's number there, if it is known


@dataclass(frozen=True)
class Model:
    """What the text says about the base. distilled: its guidance is an input of the model, not a mix of two predictions."""

    name: str
    hash: str = ""  # first 10 digits of the file's sha256 (AutoV2)
    distilled: bool = False


@dataclass(frozen=True)
class Recalled:
    """Settings read from a picture. `given` names those that it really carried; `unknown` is what has no setting here."""

    config: GenerateConfig
    given: frozenset[str]
    hashes: Mapping[str, str] = field(default_factory=dict)  # adapter name -> hash, at most 12 digits
    unknown: Mapping[str, str] = field(default_factory=dict)
    exact: bool = False  # from our own JSON


def write(settings: GenerateConfig, adapters: Sequence[Used], model: Model) -> str:
    """The `parameters` text of one picture, made for the strictest reader (Civitai).

    LoRAs are called by stems of [A-Za-z0-9_.-] and get one weight each; a model's name is without `,` `:` and quotes, where that
    reader loses it. Rows of weight 0 are left out, as they are from the picture.
    """
    named = [(name, row) for name, row in zip(stems([row.name for row in adapters]), adapters, strict=True) if row.weight]
    text = prompts.parse(settings.prompt).text
    tags = " ".join(prompts.tag(name, row.weight) for name, row in named)
    lines = [f"{text} {tags}".strip() if tags else text]
    if settings.negative_prompt:
        lines.append(_NEGATIVE + settings.negative_prompt)
    lines.append(", ".join(_details(settings, named, model)))
    return "\n".join(lines).replace("\0", "")


def read(text: str) -> Recalled:
    """The settings in an A1111 `parameters` text, ours or another program's. Raises SettingsError if there are none."""
    body, last = _split(text)
    details, hashes = _read_details(last)
    if "Steps" not in details or len(details) < 3:
        raise SettingsError("the picture's text has no settings: the last line must say Steps, Sampler, Seed and so on")
    positive, _, negative = body.partition("\n" + _NEGATIVE) if not body.startswith(_NEGATIVE) else ("", "", body.removeprefix(_NEGATIVE))
    spoken = _spoken(positive, details)
    values: dict[str, Any] = {"prompt": spoken.text, "negative_prompt": negative}
    values = {key: value for key, value in values.items() if value}
    if spoken.loras:
        values["loras"] = spoken.loras
    values |= _values(details)
    kept: dict[str, Any] = {}
    for key, value in values.items():
        try:
            build(GenerateConfig, {key: value})
            kept[key] = value
        except SettingsError:
            details[key] = str(value)
    return Recalled(build(GenerateConfig, kept), frozenset(kept), hashes, details)


def to_json(settings: GenerateConfig, adapters: Sequence[Used]) -> str:
    """Our own chunk: every setting as it was, and the adapters with their hashes."""
    rows = [{"name": row.name, "weight": row.weight, "hash": row.hash} for row in adapters]
    return json.dumps({"version": VERSION, "program": f"LoRA Studio {__version__}", "settings": settings.model_dump(mode="json"), "adapters": rows})


def from_json(text: str) -> Recalled:
    """The settings in our own chunk. Raises SettingsError if they are of a later version or broken."""
    try:
        found = json.loads(text)
        version, settings, adapters = found["version"], dict(found["settings"]), found["adapters"]
        hashes = {str(row["name"]): _short(str(row["hash"])) for row in adapters if row.get("hash")}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SettingsError(f"the picture's {CHUNK} text is broken; recall it from the studio that made it") from None
    if not isinstance(version, int) or version > VERSION:
        raise SettingsError(f"the picture was made by a later version of the studio ({found.get('program', version)}); update this one to read it")
    return Recalled(build(GenerateConfig, settings), frozenset(settings), hashes, exact=True)


def stems(names: Sequence[str]) -> tuple[str, ...]:
    """Names that tags can carry, each once: the file stem in safe letters, with a number where two would be the same."""
    found: list[str] = []
    for name in names:
        first = candidate = safe_stem(prompts.stem(name))
        number = 2
        while candidate in found:
            candidate, number = f"{first}-{number}", number + 1
        found.append(candidate)
    return tuple(found)


def _details(settings: GenerateConfig, named: Sequence[tuple[str, Used]], model: Model) -> Iterator[str]:
    hashes = {name: _short(row.hash) for name, row in named if len(row.hash) >= HASH_DIGITS and not row.hash.startswith(NOTHING)}
    guidance = None if settings.guidance is None else prompts.number(settings.guidance)
    model_name = re.sub(r'[,:"\s]+', " ", model.name).strip()
    listed = {
        "Steps": settings.steps,
        "Sampler": settings.sampler,
        "CFG scale": (prompts.number(settings.true_cfg or 1)) if model.distilled else guidance,
        "Distilled CFG Scale": guidance if model.distilled else None,
        "Seed": settings.seed,
        "Size": f"{settings.width}x{settings.height}" if settings.width and settings.height else None,
        "Model hash": model.hash or None,
        "Model": model_name or None,
        **_more(settings),
        "Lora hashes": ", ".join(f"{name}: {value}" for name, value in hashes.items()) or None,
        "Version": f"LoRA Studio {__version__}",
    }
    yield from (f"{key}: {_quote(value)}" for key, value in listed.items() if value is not None)
    known = [{"type": "lora", "modelVersionId": row.civitai, "weight": row.weight} for _, row in named if row.civitai]
    if known:  # the only place where that reader takes a negative weight from
        yield f"Civitai resources: {json.dumps(known)}"
    table = ({"model": model.hash} if model.hash else {}) | {f"lora:{name}": value for name, value in hashes.items()}
    if table:
        yield f"Hashes: {json.dumps(table)}"


def _more(settings: GenerateConfig) -> dict[str, object]:
    """What A1111 calls the settings that a plain drawing has no use for."""
    number = prompts.number
    found: dict[str, object] = {}
    if settings.variation_strength:
        found |= {"Variation seed": settings.variation_seed, "Variation seed strength": number(settings.variation_strength)}
    if settings.init_image:
        found |= {"Denoising strength": number(settings.strength), "Init image hash": settings.init_image[:HASH_DIGITS]}
    if settings.mask:
        found |= {"Mask blur": settings.mask_blur}
    if settings.hires_scale:
        found |= {} if settings.init_image else {"Denoising strength": number(settings.hires_strength)}
        found |= {"Hires upscale": number(settings.hires_scale), "Hires steps": settings.hires_steps or settings.steps, "Hires upscaler": "Lanczos"}
    if settings.upscale:
        found |= {"Tiled upscale": number(settings.upscale)}
    if settings.guidance_rescale:
        found |= {"CFG Rescale": number(settings.guidance_rescale)}
    return found


def _short(digest: str) -> str:
    return digest[:HASH_DIGITS].lower()


def _quote(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",\n:") else text


def _unquote(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            return text
    return text


def _split(text: str) -> tuple[str, str]:
    """Prompts, and the line of details; a text without any is all prompt."""
    lines = text.replace("\r\n", "\n").strip("\n").split("\n")
    start = next((i for i in range(len(lines) - 1, -1, -1) if re.match(r"\s*Steps: ", lines[i])), None)
    if start is None:
        return text, ""
    return "\n".join(lines[:start]), "\n".join(lines[start:])


def _read_details(line: str) -> tuple[dict[str, str], dict[str, str]]:
    """Fields by name, and the hashes of LoRAs by name."""
    hashes: dict[str, str] = {}
    for found in _HASHES.finditer(line):
        try:
            table = json.loads(found[1])
        except ValueError:
            continue  # another program's notation, listed below like any field
        hashes |= {key.removeprefix("lora:"): _short(str(value)) for key, value in table.items() if key.startswith("lora:")}
        line = line.replace(found[0], "")
    line = _CIVITAI.sub("", line)
    details = {found[1].strip(): _unquote(found[2].strip()) for found in _FIELD.finditer(line)}
    for entry in details.pop("Lora hashes", "").split(","):
        name, _, value = entry.rpartition(":")
        if name.strip() and value.strip():
            hashes[name.strip()] = _short(value.strip())
    return details, hashes


def _spoken(text: str, details: dict[str, str]) -> prompts.Spoken:
    """The prompt and its LoRAs; a tag with no meaning here stays in the text and is listed."""
    try:
        return prompts.parse(text)
    except SettingsError as error:
        details["LoRA tags"] = str(error)
        return prompts.Spoken(text, ())


def _values(details: dict[str, str]) -> dict[str, Any]:
    """Take the fields that are settings here out of the details."""
    found: dict[str, Any] = {}
    for key, setting in (("Steps", "steps"), ("Seed", "seed"), ("Sampler", "sampler"), ("Model", "base"), ("CFG scale", "guidance")):
        if key in details:
            found[setting] = details.pop(key)
    if "Distilled CFG Scale" in details:
        found["guidance"] = details.pop("Distilled CFG Scale")
    taken = {"Variation seed": "variation_seed", "Variation seed strength": "variation_strength", "Hires upscale": "hires_scale", "Hires steps": "hires_steps"}
    taken |= {"CFG Rescale": "guidance_rescale", "Tiled upscale": "upscale", "Mask blur": "mask_blur"}
    taken |= {"Denoising strength": "hires_strength" if "Hires upscale" in details else "strength"}
    found |= {setting: details.pop(key) for key, setting in taken.items() if key in details}
    size = re.fullmatch(r"(\d+)x(\d+)", details.get("Size", ""))
    if size:
        del details["Size"]
        found["width"], found["height"] = size[1], size[2]
    schedule = details.get("Schedule type")
    if schedule and "sampler" in found:  # A1111 1.9 and later name it apart
        del details["Schedule type"]
        found["sampler"] += "" if schedule in ("Automatic", "Normal", "Simple") else f" {schedule}"
    for key in ("Version", "Hires upscaler"):
        details.pop(key, None)
    return found
