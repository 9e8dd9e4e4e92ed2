"""A memory plan as people and programs read it."""

from typing import Any

from studio.footprint.choice import GB, Choice
from studio.footprint.estimate import SAMPLES

PARTS = {
    "base": "frozen base",
    "text encoders": "text encoders",
    "vae": "VAE",
    "adapter": "adapter",
    "optimizer": "optimizer",
    "encodings": "kept encodings",
    "gradients": "gradients",
    "activations": "activations",
    "working": "at work",
    "allocator": "reserved, not in use",
    "driver": "driver and kernels",
}
APART = {"text": "text encoders come to the card block by block", "vae": "pictures are encoded without the card"}


def values(choice: Choice) -> dict[str, Any]:
    """The plan as JSON values; sizes are bytes."""
    found = choice.footprint
    phases = {name: {"parts": {PARTS[part]: size for part, size in parts.items()}, "bytes": found.total(name)} for name, parts in found.phases.items()}
    way = choice.way
    chosen = {"base_format": way.format, "recomputed": way.recomputed, "block_offload": way.offload, "recorded": way.recorded, "apart": sorted(way.apart)}
    return {
        "peak": found.peak,
        "where": found.where,
        "budget": choice.card.budget,
        "fits": choice.fits,
        "why": choice.why,
        "notes": list(choice.notes),
        "chosen": chosen,
        "parameters": found.parameters,
        "phases": phases,
    }


def table(choice: Choice) -> str:
    """The plan in lines: parts of its largest phase, the other phases, what was chosen and why."""
    found = choice.footprint
    rows = [(PARTS[part], size) for part, size in found.phases[found.where].items()]
    lines = [f"{name:<24}{size / GB:>8.2f} GB" for name, size in rows]
    lines.append(f"{f'peak, {found.where}':<24}{found.peak / GB:>8.2f} GB")
    others = sorted((name for name in found.phases if name != found.where), key=found.total, reverse=True)
    lines += [f"{f'while {name}' if name != SAMPLES else 'while drawing samples':<24}{found.total(name) / GB:>8.2f} GB" for name in others]
    budget = f"{choice.card.budget / GB:.2f} GB" if choice.card.budget else "unknown"
    way = choice.way
    apart = [APART[part] for part in sorted(way.apart)]
    steps = "recorded steps" if way.recorded else "steps one operation after another"
    told = [f"base {way.format}", f"{way.recomputed:.0%} of the blocks recomputed", f"{way.offload:.0%} of the base in main memory", steps, *apart]
    verdict = "fits" if choice.fits else "does not fit"
    return "\n".join(
        [*lines, f"{'budget':<24}{budget:>11}: {verdict}", f"chosen: {', '.join(told)}", f"why: {choice.why}", *(f"note: {n}" for n in choice.notes)]
    )
