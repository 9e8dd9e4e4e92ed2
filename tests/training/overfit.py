"""Runs that overfit on purpose, with and without early stopping; figures and curves for the docs.

    python -m tests.training.overfit

Eight pictures of Blueprint are trained at five times the usual rate, four are held out. The run that stops early takes the very steps of
the one that goes on, so what stopping is worth can be read off one curve. Writes assets/docs/images/early-stop.svg and the table in
assets/docs/training.md.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from studio.config import TrainConfig
from studio.data.images import read_set
from studio.families import sources
from studio.training.loop import train

from .conftest import Asked

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "assets" / "docs"
BASES = ("demo-sdxl", "demo-flux")
BEGIN, END = "<!-- figures: python -m tests.training.overfit -->\n", "<!-- end of figures -->"
COMMON: dict[str, Any] = {"learning_rate": 0.01, "batch_size": 4, "resolution": 64, "rank": 16, "validation_fraction": 0.34, "validation_every": 8, "seed": 1}
STEPS, PATIENCE, TRAINED, HELD = 160, 4, 8, 4


@dataclass(frozen=True)
class Told:
    """What a run said. looks: validations, losses: of the steps."""

    looks: Sequence[Any]
    losses: Sequence[float]
    result: dict[str, Any]
    ended: int


def twelve(folder: Path) -> Path:
    """The first twelve pictures of the set with their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "assets" / "sets" / "blueprint").glob("[01][0-9]*")):
        if int(path.name[:2]) <= TRAINED + HELD:
            shutil.copy(path, folder / path.name)
    return folder


def overfitted(base: str, work: Path, patience: int | None) -> Told:
    config = TrainConfig(images="twelve", base=base, name="overfit", steps=STEPS, early_stop=patience, **COMMON)
    folder = work / f"{base}-{patience}"
    images = read_set(twelve(work / "twelve"))
    events = list(train(config, sources.find(base), images, folder, work / "cache", requests=Asked(), preview=None, device="cpu"))
    looks = [event for event in events if event.kind == "validation"]
    assert len(looks[0].by_picture) == HELD
    return Told(looks, [event.loss for event in events if event.kind == "step"], events[-1].result, events[-1].step)


def lowest(told: Told) -> Any:
    """The best look after the first step."""
    return min((look for look in told.looks if look.step), key=lambda look: look.loss)


# The figure: for each base the losses above, and below the held-out loss by noise level, as a share of the base's own.
WIDTH, HEIGHT, PAD = 520, 250, 46
TRAINED_TONE, HELD_TONE, BEST_TONE, STOP_TONE = "#b7791f", "#2b6cb0", "#147a4b", "#7a7f87"
LEVEL_TONES = ("#2b6cb0", "#7b5ea7", "#b7472a")
MOST = 2.0  # times the base's own loss that are shown


def figure(whole: dict[str, Told], stopped: dict[str, Told]) -> str:
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {2 * HEIGHT}" font-family="sans-serif" font-size="11">']
    parts.append(f'<rect width="{2 * WIDTH}" height="{2 * HEIGHT}" fill="#ffffff"/>')
    for column, base in enumerate(whole):
        parts.append(f'<g transform="translate({column * WIDTH} 0)">{_losses(base, whole[base], stopped[base])}</g>')
        parts.append(f'<g transform="translate({column * WIDTH} {HEIGHT})">{_levels(whole[base], stopped[base])}</g>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _losses(base: str, told: Told, stopped: Told) -> str:
    trained = _smoothed(told.losses)
    top = max(look.high for look in told.looks) * 1.05
    x, y = _scales(top)
    band = [(x(look.step), y(look.high)) for look in told.looks] + [(x(look.step), y(look.low)) for look in reversed(told.looks)]
    best = lowest(stopped)
    parts = [_axes(top, f"{base}: loss")]
    parts.append(f'<polygon points="{_points(band)}" fill="{HELD_TONE}" fill-opacity="0.16"/>')
    parts.append(_line([(x(step + 1), y(min(loss, top))) for step, loss in enumerate(trained)], TRAINED_TONE))
    parts.append(_line([(x(look.step), y(look.loss)) for look in told.looks], HELD_TONE))
    parts.append(f'<circle cx="{x(best.step):.1f}" cy="{y(best.loss):.1f}" r="7" fill="none" stroke="{BEST_TONE}" stroke-width="2.5"/>')
    parts.append(_stop(x(stopped.ended)))
    words = [("trained on, smoothed", TRAINED_TONE), ("held out, 95 % interval", HELD_TONE)]
    words += [(f"given: step {best.step}", BEST_TONE), (f"early_stop {PATIENCE} ends at {stopped.ended}", STOP_TONE)]
    return "".join([*parts, _legend(words)])


def _levels(told: Told, stopped: Told) -> str:
    first = told.looks[0].by_level
    thirds = [[sum(look.by_level[k] / first[k] for k in range(3 * third, 3 * third + 3)) / 3 for look in told.looks] for third in range(3)]
    top = min(MOST, max(1.05, *(value * 1.05 for values in thirds for value in values)))
    x, y = _scales(top)
    cut = f", cut off at {MOST:g}" if top == MOST else ""
    parts = [_axes(top, f"held-out loss by noise level, of the base's own{cut}")]
    for values, tone in zip(thirds, LEVEL_TONES, strict=True):
        parts.append(_line([(x(look.step), y(min(value, top))) for look, value in zip(told.looks, values, strict=True)], tone))
    words = list(zip(("least noise", "middle", "most noise"), LEVEL_TONES, strict=True))
    return "".join([*parts, _stop(x(stopped.ended)), _legend(words)])


def _scales(top: float) -> Any:
    return (lambda step: PAD + step / STEPS * (WIDTH - PAD - 16)), (lambda value: HEIGHT - 34 - value / top * (HEIGHT - 64))


def _axes(top: float, title: str) -> str:
    x, y = _scales(top)
    parts = [f'<text x="{PAD}" y="18" font-size="13" fill="#1b1f24">{title}</text>']
    mark = next(size for size in (0.05, 0.1, 0.2, 0.25, 0.5, 1.0, 2.0) if top / size <= 7)
    for k in range(int(top / mark) + 1):
        parts.append(f'<line x1="{PAD}" x2="{WIDTH - 16}" y1="{y(k * mark):.1f}" y2="{y(k * mark):.1f}" stroke="#e3e6ea"/>')
        parts.append(f'<text x="{PAD - 6}" y="{y(k * mark) + 4:.1f}" text-anchor="end" fill="#555b63">{k * mark:g}</text>')
    for step in range(0, STEPS + 1, 20):
        parts.append(f'<text x="{x(step):.1f}" y="{HEIGHT - 16}" text-anchor="middle" fill="#555b63">{step}</text>')
    return "".join(parts)


def _stop(x: float) -> str:
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="30" y2="{HEIGHT - 34}" stroke="{STOP_TONE}" stroke-dasharray="4 3"/>'


def _legend(words: Sequence[tuple[str, str]]) -> str:
    parts = [f'<rect x="{WIDTH - 196}" y="24" width="180" height="{15 * len(words) + 4}" fill="#ffffff" fill-opacity="0.9"/>']
    for row, (text, tone) in enumerate(words):
        y = 36 + 15 * row
        parts.append(f'<rect x="{WIDTH - 190}" y="{y - 7}" width="14" height="4" fill="{tone}"/>')
        parts.append(f'<text x="{WIDTH - 170}" y="{y}" fill="#1b1f24">{text}</text>')
    return "".join(parts)


def _line(points: Sequence[tuple[float, float]], tone: str) -> str:
    return f'<polyline points="{_points(points)}" fill="none" stroke="{tone}" stroke-width="2" stroke-linejoin="round"/>'


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _smoothed(values: Sequence[float], weight: float = 0.9) -> list[float]:
    found, total = [], 0.0
    for n, value in enumerate(values, start=1):
        total = weight * total + (1 - weight) * value
        found.append(total / (1 - weight**n))
    return found


def table(whole: dict[str, Told], stopped: dict[str, Told]) -> str:
    titles = ["base", f"lowest of all {STEPS} steps", f"`early_stop {PATIENCE}` ends at", "gives", "loss of what it gives", "loss where it ends"]
    rows = [f"| {' | '.join([*titles, f'loss of step {STEPS}'])} |", "| --- |" + " --- |" * 6]
    for base, told in whole.items():
        best, given, last = lowest(told), lowest(stopped[base]), stopped[base].looks[-1]
        share = given.loss / best.loss - 1
        over = "the lowest" if share == 0 else f"{share:.1%} over the lowest"
        cells = [base, f"{best.loss:.3f} at step {best.step}", f"step {last.step}", f"step {given.step}"]
        rows.append(f"| {' | '.join([*cells, f'{given.loss:.3f}, {over}', f'{last.loss:.3f}', f'{told.looks[-1].loss:.3f}'])} |")
    return "\n".join(rows)


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        whole = {base: overfitted(base, Path(name), None) for base in BASES}
        stopped = {base: overfitted(base, Path(name), PATIENCE) for base in BASES}
    (DOCS / "images" / "early-stop.svg").write_text(figure(whole, stopped), encoding="utf-8")
    page = DOCS / "training.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table(whole, stopped)}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
