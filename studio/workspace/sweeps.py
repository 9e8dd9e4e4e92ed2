"""One training for every value of some settings, through the queue, and a sheet that shows them side by side."""

import contextlib
import itertools
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studio.config import TrainConfig, build, safe_stem
from studio.errors import NotFound, SettingsError
from studio.events import Sample
from studio.jobs.folder import JobFolder
from studio.library.files import write_whole
from studio.library.layout import Layout
from studio.workspace.jobs import Jobs
from studio.workspace.records import JobRecord, SweepRecord

MOST = 64  # runs of one sweep
MARGIN, LINE = 12, 22  # pixels of the sheet
SEPARATORS = ";|"  # between values of settings whose values hold commas themselves


class Sweeps:
    """Use cases around sweeps."""

    def __init__(self, layout: Layout, jobs: Jobs) -> None:
        self._layout, self._jobs = layout, jobs

    def submit(self, config: TrainConfig, rows: Sequence[str]) -> list[JobRecord]:
        """Put a run for every combination into the queue, all with one seed. Raises SettingsError before the first if a value does not fit."""
        jobs = [self._jobs.train(one) for one in spread(config, rows)]
        told = SweepRecord(id=jobs[0].id, name=config.name, rows=tuple(rows), jobs=tuple(job.id for job in jobs))
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._folder / f"{told.id}.json", told.model_dump_json().encode())
        return jobs

    def begun(self) -> list[SweepRecord]:
        """Every sweep that was begun here, newest first."""
        paths = sorted(self._folder.glob("*.json"), reverse=True)
        return [SweepRecord(**json.loads(path.read_bytes())) for path in paths]

    def picture(self, id: str) -> Path:
        """The sheet of a sweep as its runs stand now. Raises NotFound while none of them has drawn a sample."""
        found = next((one for one in self.begun() if one.id == id), None)
        if found is None:
            raise NotFound(f"no sweep {id!r}")
        sheet = self.sheet(found.name, found.jobs)
        if sheet is None:
            raise NotFound(f"no run of the sweep {found.name!r} has drawn samples yet; sample_every says when it does")
        return sheet

    def sheet(self, name: str, ids: Sequence[str]) -> Path | None:
        """A picture with the last samples of every run in a row of its own, under its name; None if no run drew any. Runs that were removed are left out."""
        found = []
        for id in ids:
            with contextlib.suppress(NotFound):
                found.append((self._jobs.show(id).name, self._last_samples(id)))
        if not any(pictures for _, pictures in found):
            return None
        target = self._folder / f"{safe_stem(name)}-{ids[0]}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        _draw([row for row in found if row[1]], target)
        return target

    @property
    def _folder(self) -> Path:
        return self._layout.root / "sheets"

    def _last_samples(self, id: str) -> list[Path]:
        folder = JobFolder.of(self._layout.jobs, id)
        samples = [event for event in folder.read()[0] if isinstance(event, Sample)]
        last = max((sample.step for sample in samples), default=0)
        return [path for sample in samples if sample.step == last and (path := folder.path / sample.path).is_file()]


def spread(config: TrainConfig, rows: Sequence[str]) -> list[TrainConfig]:
    """The settings of every run: SETTING=A,B in every combination. A name tells the run's own values."""
    if config.output:
        raise SettingsError("output names one file and a sweep makes several; leave it out and export the one you choose")
    axes = [_axis(row) for row in rows]
    n = 1
    for _, values in axes:
        n *= len(values)
    if n > MOST:
        raise SettingsError(f"the sweep has {n} runs, more than {MOST}; leave values out")
    given: dict[str, Any] = {name: getattr(config, name) for name in config.model_fields_set}
    given["seed"] = config.seed if config.seed >= 0 else secrets.randbelow(2**32)
    found = []
    for values in itertools.product(*(values for _, values in axes)):
        own = dict(zip((setting for setting, _ in axes), values, strict=True))
        told = "-".join(f"{setting}-{value}" for setting, value in own.items())
        found.append(build(TrainConfig, {**given, **own, "name": safe_stem(f"{config.name}-{told}")}))
    return found


def _axis(row: str) -> tuple[str, list[str]]:
    setting, equals, text = row.partition("=")
    setting = setting.replace("-", "_").strip()
    if setting not in TrainConfig.model_fields or setting in ("name", "output", "images"):
        raise SettingsError(f"sweep {row!r}: {setting!r} is no setting to sweep over; see train --help for all of them")
    separator = next((mark for mark in SEPARATORS if mark in text), ",")
    values = [value.strip() for value in text.split(separator) if value.strip()]
    if not equals or len(set(values)) != len(values) or not values:
        raise SettingsError(f"sweep {row!r}: name different values, for example learning_rate=1e-4,2e-4")
    return setting, values


def _draw(rows: Sequence[tuple[str, Sequence[Path]]], target: Path) -> None:
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(14)
    pictures = [(name, [Image.open(path).convert("RGB") for path in paths]) for name, paths in rows]
    width = max(sum(image.width + MARGIN for image in images) for _, images in pictures) + MARGIN
    width = max(width, *(int(font.getlength(name)) + 2 * MARGIN for name, _ in pictures))
    height = sum(max(image.height for image in images) + LINE + MARGIN for _, images in pictures) + MARGIN
    sheet = Image.new("RGB", (width, height), (24, 26, 31))
    draw, top = ImageDraw.Draw(sheet), MARGIN
    for name, images in pictures:
        draw.text((MARGIN, top), name, fill=(230, 232, 238), font=font)
        left = MARGIN
        for image in images:
            sheet.paste(image, (left, top + LINE))
            left += image.width + MARGIN
        top += max(image.height for image in images) + LINE + MARGIN
    sheet.save(target)
