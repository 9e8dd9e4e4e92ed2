"""Grids: one job that draws every combination, each cell a picture of its own, and a sheet of them all."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from studio.config import GenerateConfig, build
from studio.config.generating.grid import Axis
from studio.config.generating.passes import shared_pass
from studio.errors import Cancelled, SettingsError
from studio.events import Event, Finished, Image, Preview, Sheet, Started, Step, Warned
from studio.generation import prompt
from studio.generation.sheets import compose

if TYPE_CHECKING:
    from studio.families.base import Components
    from studio.generation.orders import Requests
    from studio.generation.serving import Said
    from studio.lora.adapter import Adapter


@dataclass(frozen=True)
class Cell:
    """One picture of a grid: which value it has along each axis, and its settings."""

    place: tuple[int, ...]
    config: GenerateConfig


def cells(config: GenerateConfig) -> tuple[Cell, ...]:
    """All cells, the first axis running fastest. Raises SettingsError for a value or a target that does not fit."""
    if config.grid and config.count > 1:
        raise SettingsError("a grid draws one picture a cell; leave count at 1, and name seeds as an axis: seed=1..4")
    found = [Cell((), config.model_copy(update={"grid": ()}))]
    for axis in reversed(config.grid):
        found = [Cell((i, *cell.place), _changed(cell.config, axis, value)) for cell in found for i, value in enumerate(axis.values)]
    return tuple(found)


def generate(
    c: "Components",
    adapters: "Mapping[str, Adapter]",
    config: GenerateConfig,
    folder: Path,
    *,
    requests: "Requests",
    files: Mapping[str, Path],
    versions: Mapping[str, int] = MappingProxyType({}),
) -> Iterator[Event]:
    """Draw every cell into `folder`/cells, then `folder`/grid.png. adapters: by the names of all rows that any cell has.

    Raises as `sampler.generate` does; cells that are done stay.
    """
    from studio.generation import modes, orders

    todo = cells(config)
    steps = [modes.n_steps(c, orders.settle(cell.config, c.base)) for cell in todo]
    total, seconds = sum(steps), 0.0
    done: dict[int, int] = {}  # looks so far, cell by cell
    made: dict[int, str] = {}
    said: set[str] = set()
    for group in groups(todo):
        if made and "finish" in requests.pending():
            break
        for number, event in _drawn(c, adapters, todo, group, folder, requests, files, versions):
            if isinstance(event, Cancelled):
                raise Cancelled(f"the grid was cancelled; {len(made)} of {len(todo)} pictures are kept")
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Finished):
                seconds += event.seconds / len(group)
            elif (isinstance(event, Warned) and event.message in said) or (isinstance(event, Started) and number):
                continue
            else:
                if isinstance(event, Step):
                    done[number] = event.step
                yield _told(event, config, number, sum(done.values()), total)
                if isinstance(event, Image):
                    made[number] = f"{_place(number)}/{event.path}"
                if isinstance(event, Warned):
                    said.add(event.message)
    paths = [made[number] for number in sorted(made)]
    result: dict[str, Any] = {"images": paths, "finished_early": len(made) < len(todo)}
    if len(made) == len(todo):
        compose([folder / path for path in paths], config.grid, folder / "grid.png")
        yield Sheet(path="grid.png")
        result["grid"] = "grid.png"
    yield Finished(step=sum(steps[number] for number in made), seconds=round(seconds, 3), result=result)


def groups(todo: Sequence[Cell]) -> Iterator[range]:
    """Numbers of the cells that are drawn at once: neighbours that one pass can serve, as many as a batch holds."""
    first = 0
    while first < len(todo):
        key, size = shared_pass(todo[first].config), 1
        while key and size < todo[first].config.batch and first + size < len(todo) and shared_pass(todo[first + size].config) == key:
            size += 1
        yield range(first, first + size)
        first += size


def _drawn(
    c: "Components",
    adapters: "Mapping[str, Adapter]",
    todo: Sequence[Cell],
    group: range,
    folder: Path,
    requests: "Requests",
    files: Mapping[str, Path],
    versions: Mapping[str, int],
) -> "Iterator[Said]":
    """What is said while these cells are drawn, with the number of the cell."""
    from studio.generation import serving
    from studio.generation.orders import Order

    wanted = []
    for number in group:
        cell = todo[number].config
        rows = [(adapters[row.name], row) for row in cell.loras]
        wanted.append(Order(cell, rows, folder / _place(number), requests, [row.name for row in cell.loras], files, versions))
    yield from ((group[i], event) for i, event in serving.serve(c, wanted))


def _place(number: int) -> str:
    return f"cells/{number:04}"


def _told(event: Event, config: GenerateConfig, number: int, done: int, total: int) -> Event:
    """An event of one cell as one of the whole grid. done: looks of all cells so far."""
    if isinstance(event, Started):
        return event.model_copy(update={"total": total, "settings": config.model_dump(mode="json")})
    if isinstance(event, Step):
        return event.model_copy(update={"step": done, "total": total})
    if isinstance(event, Preview):
        return event.model_copy(update={"path": f"{_place(number)}/{event.path}", "step": done})
    if isinstance(event, Image):
        return event.model_copy(update={"path": f"{_place(number)}/{event.path}", "index": number})
    return event


def _changed(config: GenerateConfig, axis: Axis, value: str) -> GenerateConfig:
    """The settings with one value of an axis."""
    if axis.kind in ("prompt", "negative_prompt"):
        word, text = axis.target or axis.values[0], getattr(config, axis.kind)
        if word not in text:
            raise SettingsError(f"grid: {word!r} is not in the {axis.kind.replace('_', ' ')}; name a word that is, as {axis.kind}:WORD=A,B")
        changes: dict[str, Any] = {axis.kind: text.replace(word, value)}
    elif axis.kind in ("weight", "lora", "checkpoint"):
        at = _row(config, axis)
        row = config.loras[at]
        new = {"weight": value} if axis.kind == "weight" else {"name": value if axis.kind == "lora" else f"{row.name.partition('@')[0]}@{value}"}
        changes = {"loras": tuple(build(type(one), {**one.model_dump(), **(new if i == at else {})}) for i, one in enumerate(config.loras))}
    elif axis.kind == "stack":
        changes = {"loras": tuple(row.strip() for row in value.split("+") if row.strip())}
    else:
        changes = {axis.kind: value}
    return build(GenerateConfig, {**config.model_dump(), **changes})


def _row(config: GenerateConfig, axis: Axis) -> int:
    """Which row of the stack an axis is about."""
    names = [prompt.stem(row.name) for row in config.loras]
    if not axis.target and len(names) == 1:
        return 0
    wanted = prompt.stem(axis.target)
    if wanted not in names and wanted.partition("@")[0] not in [name.partition("@")[0] for name in names]:
        rows = ", ".join(names) or "empty"
        raise SettingsError(f"grid: {axis.target or 'no row'!r} is not in the stack ({rows}); write {axis.kind}:ROW=A,B")
    return names.index(wanted) if wanted in names else [name.partition("@")[0] for name in names].index(wanted.partition("@")[0])
