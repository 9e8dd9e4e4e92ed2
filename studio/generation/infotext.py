"""The text inside a picture: A1111 `parameters`, which A1111, Forge and Civitai read, and our own JSON, which restores settings exactly."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio import __version__
from studio.config import GenerateConfig, build, safe_stem
from studio.errors import ImageError, SettingsError
from studio.generation import prompt as prompts
from studio.metadata import write_atomic

if TYPE_CHECKING:
    from PIL import Image

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


def write_png(image: "Image.Image", path: Path, settings: GenerateConfig, adapters: Sequence[Used], model: Model) -> None:
    """Save the picture with both texts, whole or not at all."""
    from io import BytesIO

    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", write(settings, adapters, model).encode("utf-8", "replace").decode())
    info.add_text(CHUNK, to_json(settings, adapters))
    buffer = BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    write_atomic(path, [buffer.getvalue()])


def read_png(source: Path | str | bytes) -> Recalled:
    """The settings of a picture: our own exactly, else another program's as far as they have a place here.

    JPEG and WebP with the same text in EXIF are read too. Raises ImageError if the file carries none.
    """
    name = "the picture" if isinstance(source, bytes) else Path(source).name
    texts = _texts(source, name)
    try:
        if CHUNK in texts:
            return from_json(texts[CHUNK])
        if "parameters" in texts:
            return read(texts["parameters"])
    except SettingsError as error:
        raise ImageError(f"{name}: {error}") from None
    raise ImageError(f"{name}: carries no settings; a PNG straight from the studio, A1111 or Forge does, a screenshot or an edited copy does not")


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
        "CFG scale": "1" if model.distilled else guidance,
        "Distilled CFG Scale": guidance if model.distilled else None,
        "Seed": settings.seed,
        "Size": f"{settings.width}x{settings.height}" if settings.width and settings.height else None,
        "Model hash": model.hash or None,
        "Model": model_name or None,
        "Lora hashes": ", ".join(f"{name}: {value}" for name, value in hashes.items()) or None,
        "Version": f"LoRA Studio {__version__}",
    }
    yield from (f"{key}: {_quote(value)}" for key, value in listed.items() if value is not None)
    table = ({"model": model.hash} if model.hash else {}) | {f"lora:{name}": value for name, value in hashes.items()}
    if table:
        yield f"Hashes: {json.dumps(table)}"


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
    size = re.fullmatch(r"(\d+)x(\d+)", details.get("Size", ""))
    if size:
        del details["Size"]
        found["width"], found["height"] = size[1], size[2]
    schedule = details.get("Schedule type")
    if schedule and "sampler" in found:  # A1111 1.9 and later name it apart
        del details["Schedule type"]
        found["sampler"] += "" if schedule in ("Automatic", "Normal", "Simple") else f" {schedule}"
    details.pop("Version", None)
    return found


def _texts(source: Path | str | bytes, name: str) -> dict[str, str]:
    from io import BytesIO

    from PIL import Image

    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=("PNG", "JPEG", "WEBP")) as image:
            found = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
            comment = image.getexif().get_ifd(0x8769).get(0x9286) if "parameters" not in found else None
    except FileNotFoundError:
        raise ImageError(f"{source}: no such file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{name}: is no PNG, JPEG or WebP picture that can be read ({str(error)[:100]})") from None
    if isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
        found["parameters"] = _utf16(comment[8:])
    elif isinstance(comment, bytes) and comment.startswith(b"ASCII\0\0\0"):
        found["parameters"] = comment[8:].decode("ascii", "replace")
    return found


def _utf16(raw: bytes) -> str:
    """UTF-16 of either byte order: Latin text tells which."""
    little = raw[1::2].count(0) > raw[0::2].count(0)
    return raw.decode("utf-16-le" if little else "utf-16-be", "replace")
