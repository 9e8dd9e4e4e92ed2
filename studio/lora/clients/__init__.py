"""Does another program load this LoRA file, how much of it, at what strength, and under which base? Pure, from names, shapes and header."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from studio.families import FAMILIES
from studio.lora.clients.content import Content, Shapes, content, read_alphas
from studio.lora.clients.labels import LABELS, header_faults, hidden
from studio.lora.clients.rules import LOADERS, Rules

__all__ = ["CLIENTS", "PROMISED", "Verdict", "check", "examine", "faults"]

Loads = Literal["yes", "partly", "no", "not applicable"]

CLIENTS = tuple(LABELS)
# Who a file of that format is written for: it must load there, at the trained strength.
PROMISED = {"kohya": ("ComfyUI", "A1111", "Forge", "SwarmUI"), "peft": ("diffusers",)}


@dataclass(frozen=True)
class Verdict:
    """What one client makes of the file.

    matched, total: modules as the file counts them. strength: whether weight 1 means what was trained; None where nothing is loaded.
    label: the base it shows; empty if it shows none. listed: whether the file appears among the LoRAs for its base.
    inherent: a wrong strength, or that nothing is loaded, lies in what the file holds, not in how it was written.
    words: whether it reads the new words that come with the layers; None where there are none, or nothing is loaded.
    """

    client: str
    loads: Loads
    matched: int
    total: int
    strength: bool | None
    label: str
    listed: bool
    reasons: tuple[str, ...]
    inherent: bool = False
    words: bool | None = None

    @property
    def good(self) -> bool:
        return self.loads in ("yes", "not applicable") and self.strength is not False and self.listed and self.words is not False


def check(
    shapes: Shapes,
    metadata: Mapping[str, str],
    alphas: Mapping[str, float] | None = None,
    *,
    base: str = "",
    digest: str = "",
    foreign: str = "",
) -> tuple[Verdict, ...]:
    """The verdict of every client on a base of family `base`; without one, on that of the file.

    alphas: by module name as in the file, None if unknown. digest: sha256 of the tensor section, if known. foreign: why the file is for no base here.
    """
    c = content(shapes, metadata, alphas, digest)
    target = base or c.family or ("sdxl" if any(m.family == "" and m.paths for m in c.modules) else "")
    return tuple(_verdict(client, c, "" if foreign else target, foreign) for client in CLIENTS)


def examine(path: Path, base: str = "") -> tuple[Verdict, ...]:
    """check() of a file on disk. Raises FormatError if it is no .safetensors file."""
    from studio.container import read_header
    from studio.lora.formats.detect import detect
    from studio.metadata import tensor_hash

    header = read_header(path)
    found = detect(header.shapes)
    foreign = found.reason if found.format == "unknown" else ""
    return check(header.shapes, header.metadata, read_alphas(path), base=base, digest=tensor_hash(path), foreign=foreign)


def faults(verdicts: Iterable[Verdict], format: str) -> list[str]:
    """Why a file of that format must not be given away; empty if it may. A client that only leaves layers out is no fault."""
    found = []
    for verdict in verdicts:
        broken = (verdict.loads == "no" and not verdict.inherent) or (verdict.strength is False and not verdict.inherent) or not verdict.listed
        if (verdict.client in PROMISED[format] and broken) or (verdict.client not in LOADERS and verdict.reasons):
            found.append(f"{verdict.client}: {'; '.join(verdict.reasons)}")
    return list(dict.fromkeys(found))


def _verdict(client: str, c: Content, base: str, foreign: str) -> Verdict:
    total = len(c.modules)
    label = LABELS[client](c)
    if client not in LOADERS:
        return Verdict(client, "not applicable", 0, total, None, label, True, () if foreign else tuple(header_faults(c)))
    rules = LOADERS[client].get(base)
    if rules is None:
        title = FAMILIES[base].facts.title if base in FAMILIES else "this base model"
        return Verdict(client, "not applicable", 0, total, None, label, True, (foreign or f"does not draw with {title}",))
    refused = tuple(reason for applies, reason in rules.refuses if applies(c))
    if refused:
        return Verdict(client, "no", 0, total, None, label, True, refused, inherent=not c.modules)
    if not c.modules and c.words:
        told = (rules.wordless,) if rules.wordless else ()
        return Verdict(client, "no" if told else "yes", 0, 0, None, label, True, told, inherent=bool(told), words=not told)
    kept, reasons = _sift(c, rules)
    if not kept:
        return Verdict(client, "no", 0, total, None, label, True, tuple(reasons))
    weak = [reason for applies, reason in rules.weakens if applies(c)]
    limits = [reason for applies, reason in rules.limits if applies(c)]
    unlisted = hidden(client, c)
    wordless = rules.wordless if c.words else ""
    told = (*reasons, *weak, *limits, *(said for said in (wordless, unlisted) if said))
    loads: Loads = "yes" if kept == total else "partly"
    words = not wordless if c.words else None
    return Verdict(client, loads, kept, total, not (weak or limits), label, not unlisted, told, bool(limits) and not weak, words)


def _sift(c: Content, rules: Rules) -> tuple[int, list[str]]:
    """How many modules are applied, and why the others are not."""
    left = list(c.modules)
    reasons: list[str] = []
    tensors = c.vectors if rules.wordless else 0
    for applies, reason in rules.loses:
        lost = [module for module in left if applies(module)]
        if lost:
            left = [module for module in left if not applies(module)]
            tensors += sum(len(module.shapes) for module in lost)
            reasons.append(f"{len(lost)} of {len(c.modules)} modules: {reason}")
    if rules.needs:
        find, reason = rules.needs
        names = find(c)
        lone = [module for module in left if module.name in names]
        if lone:
            left = [module for module in left if module.name not in names]
            reasons.append(f"{len(lone)} of {len(c.modules)} modules: {reason}")
    if rules.most_lost is not None and tensors > rules.most_lost:
        return 0, [f"refuses the whole file: {tensors} tensors have no place, more than {rules.most_lost}", *reasons]
    return len(left), reasons
