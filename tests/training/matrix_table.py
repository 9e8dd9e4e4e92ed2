"""The rows of the matrix as the figures of assets/docs/networks.md."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from studio.training.validation import interval

PAGE = Path(__file__).resolve().parents[2] / "assets" / "docs" / "networks.md"
BEGIN, END = "<!-- figures: python -m tests.training.matrix -->\n", "<!-- end of figures -->"
BASES = ("demo-sdxl", "demo-flux")
GROUPS = {
    "networks": "Networks and starts",
    "rates": "Other learning rates (usual: 0.002)",
    "places": "Places",
    "optimizers": "Optimizers and averages",
    "schedules": "Schedules",
    "formats": "Formats of the base",
    "objectives": "Objectives",
}
Row = dict[str, Any]


def write(rows: list[Row]) -> None:
    """Put the tables between the marks of the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    told = "\n\n".join(table for table in (networks(rows), files(rows), smaller(rows), options(rows)) if table)
    PAGE.write_text(f"{before}{BEGIN}\n{told}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


def networks(rows: list[Row]) -> str:
    """Every network beside LoRA on the sets that were measured, and all weights trained as the yardstick."""
    found = [row for row in rows if row["group"] == "networks" and "failed" not in row]
    titles = list(dict.fromkeys(row["title"] for row in found))
    titles.sort(key=lambda title: (title != "LoRA", title == "AdaLoRA"))
    lines = ["| network | " + " | ".join(f"{base}: loss, of the base's | beside LoRA, 95 % | file | by probe" for base in BASES) + " |"]
    lines.append("| --- |" + " --- |" * 8)
    for title in titles:
        cells = []
        for base in BASES:
            own = _by_set(found, title, base)
            cells += _beside(own, _by_set(found, "LoRA", base)) + _files(own)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines.append(_full(rows, found))
    counts = {base: sorted({row["images"] for row in found if row["base"] == base}) for base in BASES}
    sets = "; ".join(f"{base}: {', '.join(names)}" for base, names in counts.items())
    return f"{_head(found)} Sets: {sets}.\n\n" + "\n".join(lines)


def _by_set(rows: Sequence[Row], title: str, base: str) -> dict[str, Row]:
    return {row["images"]: row for row in rows if row["title"] == title and row["base"] == base}


def _shares(own: dict[str, Row]) -> dict[tuple[str, str], float]:
    """(set, picture) -> loss after, as a share of the set's mean before."""
    return {(name, picture): after / row["before"] for name, row in own.items() for picture, (_, after) in row["pictures"].items()}


def _beside(own: dict[str, Row], other: dict[str, Row]) -> list[str]:
    """The mean share, and how many points it lies above or below the other's, over the pictures that both were measured by."""
    if not own:
        return ["", ""]
    mine, theirs = _shares(own), _shares(other)
    share = f"{sum(mine.values()) / len(mine):.1%}"
    common = sorted(mine.keys() & theirs.keys())
    between = interval(torch.tensor([100 * (mine[key] - theirs[key]) for key in common], dtype=torch.float64))
    if own == other or between is None:
        return [share, ""]
    return [share, f"{between[0]:+.1f} to {between[1]:+.1f}"]


def _files(own: dict[str, Row]) -> list[str]:
    row = own.get("woodcut") or next(iter(own.values()), None)
    if row is None:
        return ["", ""]
    trimmed = [one["probe"].get("bytes") for one in own.values() if one.get("probe")]
    known = [size for size in trimmed if size]
    return [f"{row['bytes'] / 1000:.0f} kB", f"{sum(known) / len(known) / 1000:.0f} kB" if known else "no ranks" if not trimmed else "as large"]


def _full(rows: list[Row], networks: list[Row]) -> str:
    """All weights trained, each base and set at the best of the rates that were tried, which flatters it."""
    cells = []
    for base in BASES:
        best: dict[str, Row] = {}
        for row in rows:
            if row["group"] == "full" and row["base"] == base and "failed" not in row:
                known = best.get(row["images"])
                best[row["images"]] = row if known is None or row["after"] < known["after"] else known
        rates = sorted({row["title"].rpartition(" ")[2] for row in best.values()})
        cells += [*_beside(best, _by_set(networks, "LoRA", base)), f"rate {', '.join(rates)}", ""]
    return f"| all weights of the base, no LoRA | {' | '.join(cells)} |"


def files(rows: list[Row]) -> str:
    """AdaLoRA beside a LoRA of the rank that it begins with and one of the size that it ends with, over all sets."""
    found = [row for row in rows if row["group"] == "files" and "failed" not in row]
    if not found:
        return ""
    largest, equal = "LoRA, rank 16", "LoRA, rank 4"
    lines = ["| run | " + " | ".join(f"{base}: loss, of the base's | beside {largest} | beside {equal} | file" for base in BASES) + " |"]
    lines.append("| --- |" + " --- |" * 8)
    for title in dict.fromkeys(row["title"] for row in sorted(found, key=lambda row: -row["bytes"])):
        cells = []
        for base in BASES:
            own = _by_set(found, title, base)
            share, first = _beside(own, _by_set(found, largest, base))
            second = _beside(own, _by_set(found, equal, base))[1]
            cells += [share, first, second, f"{sum(row['bytes'] for row in own.values()) / max(1, len(own)) / 1000:.0f} kB"]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    sets = ", ".join(dict.fromkeys(row["images"] for row in found))
    return f"**AdaLoRA's files.** {_head(found)} Sets: {sets}; differences in points of the base's loss, 95 %, by picture.\n\n" + "\n".join(lines)


def smaller(rows: list[Row]) -> str:
    """What the rank probe saves, of a LoRA and of what AdaLoRA left, and at which loss."""
    main = [row for row in rows if row.get("probe") and row["images"] == "woodcut" and row["title"] in ("LoRA", "DoRA", "AdaLoRA")]
    found = main + [row for row in rows if row["group"] == "sizes"]
    lines = ["| run | base | held-out loss | file | after the probe | loss | difference, 95 % | mean rank |", "| --- |" + " --- |" * 7]
    for row in sorted(found, key=lambda row: (BASES.index(row["base"]), row["title"])):
        if "failed" in row:
            continue
        after, before = row["probe"]["after"], row["probe"]["before"]
        title = row["title"] if row["group"] == "sizes" else f"{row['title']}, rank {row['settings']['rank']}"
        cells = [title, row["base"], f"{row['after']:.4f}", f"{row['bytes'] / 1000:.0f} kB"]
        if after:
            between = f"{after['between'][0]:+.4f} to {after['between'][1]:+.4f}"
            ranks = f"{before['mean_rank']:g} to {after['mean_rank']:g}"
            cells += [f"{row['probe']['bytes'] / 1000:.0f} kB, {1 - row['probe']['bytes'] / row['bytes']:.0%} less", f"{after['loss']:.4f}", between, ranks]
        else:
            cells += ["none as good", "", "", f"{before['mean_rank']:g}"]
        lines.append(f"| {' | '.join(cells)} |")
    return f"**Smaller files.** {_head(found)} Set woodcut.\n\n" + "\n".join(lines)


def options(rows: list[Row]) -> str:
    """Every choice on both bases: loss before and after, whether it fell, and what other programs read."""
    lines = ["| choice | " + " | ".join(f"{base}: held-out loss | change, 95 %" for base in BASES) + " | steps | largest error of another loader |"]
    lines.append("| --- |" + " --- |" * 6)
    woodcut = [row for row in rows if row["images"] == "woodcut"]
    for group, heading in GROUPS.items():
        inside = [row for row in woodcut if row["group"] == group]
        if inside:
            lines.append(f"| **{heading}** | | | | | | |")
        for title in dict.fromkeys(row["title"] for row in inside):
            both = {row["base"]: row for row in inside if row["title"] == title}
            cells = [cell for base in BASES for cell in _fell(both.get(base), "refused" if group == "objectives" else "not run")]
            steps = ", ".join(sorted({str(row["steps"]) for row in both.values()}))
            lines.append(f"| {title} | {' | '.join(cells)} | {steps} | {_read(list(both.values()))} |")
    return "**Every choice.** Set woodcut, seed 1; losses are those that the run itself learns from, before and after on the same draws.\n\n" + "\n".join(lines)


def _fell(row: Row | None, otherwise: str) -> list[str]:
    """otherwise: where there is no row; an objective that means nothing to a base is refused by it."""
    if row is None:
        return [otherwise, ""]
    if "failed" in row:
        return [row["failed"], ""]
    low, high = row["between"]
    return [f"{row['before']:.3f} to {row['after']:.3f}", f"{low:+.3f} to {high:+.3f}{'' if row['lowered'] else ' (not lower)'}"]


def _read(rows: list[Row]) -> str:
    """The worst of each loader over the bases."""
    worst: dict[str, float] = {}
    for row in rows:
        for name, found in row.get("second", {}).items():
            if found["worst"] is not None:
                called = name.split()[0]
                worst[called] = max(worst.get(called, 0.0), found["worst"])
    return ", ".join(f"{name} {_size(value)}" for name, value in sorted(worst.items()))


def _size(value: float) -> str:
    return "0" if value == 0 else f"1e{math.ceil(math.log10(value)):d}"


def _head(rows: list[Row]) -> str:
    common = rows[0]["settings"]
    versions = ", ".join(sorted({row["torch"].split("+")[0] for row in rows}))
    steps = ", ".join(sorted({str(row["steps"]) for row in rows}))
    return f"{steps} steps, rank {common['rank']} unless said, batch {common['batch_size']}, {common['resolution']} px, seed 1, CPU in fp32, torch {versions}."
