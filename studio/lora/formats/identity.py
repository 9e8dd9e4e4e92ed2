"""What is this file for? Decided by the names and shapes of its tensors; what the header says of itself is only compared with them. Pure."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from studio.lora.formats import foreign, names

Shapes = Mapping[str, tuple[int, ...]]

_ALGORITHMS = {"magnitude": "DoRA", "peft_magnitude": "DoRA", "w1_a": "LoHa", "kron_w1": "LoKr", "kron_w1_a": "LoKr", "diff": "full difference"}
_STATED = (  # what headers say, longest first where one begins like another
    ("stable-diffusion-xl", "sdxl"),
    ("sdxl", "sdxl"),
    ("flux-2", "flux2"),
    ("flux.2", "flux2"),
    ("flux", "flux"),
    ("chroma", "chroma"),
    ("stable-diffusion-v1", "sd1"),
    ("sd_v1", "sd1"),
    ("sd_1", "sd1"),
    ("stable-diffusion-v2", "sd2"),
    ("sd_v2", "sd2"),
    ("stable-diffusion-3", "sd3"),
    ("sd3", "sd3"),
    ("wan", "wan"),
    ("qwen", "qwen"),
    ("hunyuan", "hunyuan"),
)
_MIXED = "mixes layers of "
_STATING = ("ss_base_model_version", "modelspec.architecture")


@dataclass(frozen=True)
class Identity:
    """kind: lora, checkpoint, denoiser, vae, text encoder, embedding, controlnet, ip-adapter, ... or unknown.

    family: sdxl or flux, or a base that the studio only knows by name (sd1, wan, ...), or empty. format: of names, for a LoRA.
    algorithm: LoRA, LoCon, DoRA, LoHa, LoKr, full difference, or several. parts: pipeline part -> modules with a layer.
    confidence: share of the tensors that have a place. reasons: why, the first one sentence that follows the file's name.
    """

    kind: str
    family: str = ""
    parts: Mapping[str, int] = field(default_factory=dict)
    format: str = ""
    algorithm: str = ""
    confidence: float = 0.0
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    unknown: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()

    @property
    def readable(self) -> bool:
        """Whether the studio can read it as a LoRA."""
        return self.kind == "lora" and bool(self.format) and not self.reasons[0].startswith(_MIXED)


def identify(shapes: Shapes, metadata: Mapping[str, str] | None = None) -> Identity:
    """What the file is, for which base, and how sure that is."""
    found = _remembered(tuple(shapes.items()), stated_family(metadata or {}))
    lies = _lies(found, metadata or {})
    return replace(found, warnings=(*found.warnings, *lies)) if lies else found


@lru_cache(names.LISTS)
def _remembered(shapes: tuple[tuple[str, tuple[int, ...]], ...], told: str) -> Identity:
    return _identify(dict(shapes), told)


def _identify(shapes: Shapes, told: str) -> Identity:
    if not shapes:
        return Identity("unknown", reasons=("holds no tensors",))
    text = foreign.joined(shapes)
    groups, unknown = names.grouped(shapes)
    if not groups and not unknown:
        return _words(shapes, told)
    if not groups and not foreign.is_lora(text):
        other = foreign.file(shapes, text)
        if other:
            return Identity(other.kind, other.family, confidence=1.0, reasons=(other.words,))
        return Identity("unknown", reasons=(f"is no LoRA (first tensor: {_short(next(iter(shapes)))})",))
    other = _clashing(shapes, text, len(groups)) or foreign.lora(shapes, text)
    if other:
        return Identity(other.kind, other.family, confidence=1.0, reasons=(other.words,), unknown=tuple(unknown))
    if not groups:
        title = foreign.unreadable(text)
        first = _short(next(iter(shapes)))
        words = (
            f"holds {title} layers, which the studio cannot read" if title else f"is a LoRA for a base that the studio does not know (first tensor: {first})"
        )
        return Identity("lora", algorithm=title, reasons=(words,), unknown=tuple(unknown))
    return _lora(shapes, groups, unknown, told)


def _clashing(shapes: Shapes, text: str, groups: int) -> foreign.Foreign | None:
    """A whole model or adapter of another kind in which only a few names look like a LoRA's."""
    other = foreign.file(shapes, text)
    return other if other and (other.kind in ("controlnet", "ip-adapter") or 4 * groups < len(shapes) - groups) and not _mostly_lora(shapes) else None


def _mostly_lora(shapes: Shapes) -> bool:
    known = sum(names.split_key(key) is not None or names.embedding(key) is not None for key in shapes)
    return 2 * known >= len(shapes)


def _lora(shapes: Shapes, groups: Mapping[str, Mapping[str, str]], unknown: Sequence[str], told: str) -> Identity:
    targets = {module: target for module in groups if (target := names.target(module))}
    families = sorted({target.family for target in targets.values()} - {""})
    parts = Counter(path.partition(".")[0] for target in targets.values() for path in target.paths)
    n = sum(parts.values())
    layout = _format(shapes)
    confidence = 1 - len(unknown) / len(shapes)
    warnings = [f"{len(unknown)} of {len(shapes)} tensors have no place in it, first {_short(unknown[0])}"] if unknown else []
    embeddings = tuple(dict.fromkeys(found[0] for key in shapes if (found := names.embedding(key))))
    if embeddings:
        warnings.append(f"brings textual inversions of its own: {', '.join(map(_short, embeddings[:5]))}")
    family = families[0] if len(families) == 1 else ""
    if len(families) > 1:
        reason = _MIXED + " and ".join(families)
    elif not families:
        family = told if told in ("sdxl", "flux") else ""
        reason = "holds only CLIP-L layers, which SDXL and FLUX.1 share" + (f"; its header says {foreign.TITLES[family]}" if family else "")
    else:
        reason = f"{n} {layout} layers named as in {family}" + (f", {len(unknown)} tensors unknown" if unknown else "")
    return Identity(
        "lora",
        family,
        dict(sorted(parts.items())),
        layout,
        _algorithm(shapes, groups),
        confidence,
        (reason,),
        tuple(warnings),
        _ranks(shapes, groups),
        tuple(unknown),
        embeddings,
    )


def _words(shapes: Shapes, told: str) -> Identity:
    """A file of new words alone, in the form in which they are bundled with layers."""
    found = [place for key in shapes if (place := names.embedding(key))]
    encoders = {encoder for _, encoder in found}
    family = "sdxl" if "clip_g" in encoders else "flux" if "t5" in encoders else told if told in ("sdxl", "flux") else ""
    words = tuple(dict.fromkeys(word for word, _ in found))
    reason = f"holds the new words {', '.join(map(_short, words[:5]))} and no layers" + ("" if family else ", and does not say for which base")
    return Identity("lora", family, {}, "kohya", "new words", 1.0, (reason,), embeddings=words)


def stated_family(metadata: Mapping[str, str]) -> str:
    """The family that the header names, or nothing."""
    for key in _STATING:
        value = metadata.get(key, "").lower()
        for word, family in _STATED:
            if word in value:
                return family
    return "sd2" if metadata.get("ss_v2") == "True" else ""


def _lies(found: Identity, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Where the header names another family than the tensors show."""
    stated = stated_family(metadata)
    if not stated or not found.family or stated == found.family:
        return ()
    source = next((f"{key} {_short(metadata[key])}" for key in _STATING if metadata.get(key)), "ss_v2")
    title = foreign.TITLES.get(stated, stated)
    if (stated, found.family) == ("chroma", "flux"):
        return (f"its header says Chroma ({source}), whose layers are named as in FLUX.1; it may do little on FLUX.1",)
    return (f"its header says {title} ({source}), its tensors are those of {foreign.TITLES.get(found.family, found.family)}; the tensors decide",)


def _format(shapes: Shapes) -> str:
    text = foreign.joined(shapes)
    for mark, layout in (("\nlora_transformer_", "onetrainer"), ("\nlycoris_", "lycoris"), ("\nlora_unet_", "kohya"), ("\nlora_te", "kohya")):
        if mark in text:
            return layout
    if ".processor." in text and re.search(r"\.processor\.(?:qkv|proj)_lora", text):
        return "xlabs"
    if ".processor.to_" in text:
        return "attn-procs"
    if "diffusion_model." in text:
        return "dotted"
    if text.endswith(".down\n") or ".down\n" in text:
        return "checkpoint"
    return "bfl" if "\ndouble_blocks." in text or "\nsingle_blocks." in text else "peft"


def _algorithm(shapes: Shapes, groups: Mapping[str, Mapping[str, str]]) -> str:
    found: Counter[str] = Counter()
    for kinds in groups.values():
        if "down" in kinds and not {"magnitude", "peft_magnitude"} & set(kinds):
            shape = shapes[kinds["down"]]
            found["LoCon" if "mid" in kinds or (len(shape) == 4 and shape[2:] != (1, 1)) else "LoRA"] += 1
        found.update({_ALGORITHMS[kind] for kind in kinds if kind in _ALGORITHMS})
    if "LoCon" in found:
        del found["LoRA"]  # a LoCon is a LoRA that has convolutions too
    return " + ".join(name for name, _ in sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _ranks(shapes: Shapes, groups: Mapping[str, Mapping[str, str]]) -> tuple[int, ...]:
    found = {shapes[key][0] for kinds in groups.values() for kind, key in kinds.items() if kind in ("down", "w1_b", "kron_w2_b") and shapes[key]}
    return tuple(sorted(found))


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:120] + "…")
