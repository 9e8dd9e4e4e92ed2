"""merge, resize, probe, extract, bake, stack check: submit a tool and watch it."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.cli.flags import locate
from studio.cli.follow import follow
from studio.cli.opening import knows, opened
from studio.cli.output import emit, tell
from studio.config import LoraWeight, parse_loras
from studio.errors import BaseError
from studio.events import Event, Exported

if TYPE_CHECKING:
    from studio.workspace import Workspace


def merge(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        return _run(workspace, arguments, "merge", {"loras": _stack(workspace, arguments.loras), "method": arguments.method, "rank": arguments.rank})


def resize(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        return _run(workspace, arguments, "resize", {"source": _lora(workspace, arguments.source), "rank": arguments.rank, "energy": arguments.energy})


def probe(arguments: argparse.Namespace) -> int:
    """`probe`: the smallest ranks that predict held-out pictures as well."""
    with opened(arguments) as workspace:
        values = {"source": _lora(workspace, arguments.source), "base": _base(workspace, arguments.base) if arguments.base else None}
        values["images"] = locate(arguments.images, lambda name: knows(workspace.sets.show, name)) if arguments.images else None
        return _run(workspace, arguments, "probe", {**values, "tolerance": arguments.tolerance}, _probed)


def _probed(result: dict[str, Any]) -> None:
    """What was tried, and what came of it, for people."""
    report = result["probe"]
    for one in report["tried"]:
        between = " to ".join(f"{value:+.2g}" for value in one["between"] or (one["worse"],))
        tell(f"{one['energy']:.4%} of the energy: {one['parameters']} numbers, loss {one['loss']:.5g} ({between}){'' if one['equal'] else ', too much'}")
    after, before = report["after"], report["before"]
    if after is None:
        tell("no smaller LoRA predicts the held-out pictures as well")
        return
    share = 1 - after["parameters"] / before["parameters"]
    tell(f"{share:.0%} smaller: mean rank {after['mean_rank']:g} of {before['mean_rank']:g}; loss {after['loss']:.5g}, {report['loss']:.5g} before")


def extract(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        values = {"tuned": _base(workspace, arguments.tuned), "base": _base(workspace, arguments.base), "rank": arguments.rank, "energy": arguments.energy}
        return _run(workspace, arguments, "extract", {**values, "targets": arguments.targets, "text_encoders": arguments.text_encoders})


def bake(arguments: argparse.Namespace) -> int:
    with opened(arguments) as workspace:
        values = {"base": _base(workspace, arguments.base), "vae": _base(workspace, arguments.vae) if arguments.vae else None}
        return _run(workspace, arguments, "bake", {**values, "loras": _stack(workspace, arguments.loras)})


def check(arguments: argparse.Namespace) -> int:
    """`stack check`: the rows of a stack against each other, and each against a base."""
    with opened(arguments) as workspace:
        rows = [row.model_copy(update={"name": _lora(workspace, row.name)}) for row in parse_loras(arguments.loras)]
        base = _base(workspace, arguments.base) if arguments.base else None
        job = workspace.tools.run("check", {"loras": [row.model_dump() for row in rows], "base": base})
        if arguments.json:
            emit({"kind": "submitted", "job": job.id})
        code = follow(workspace, job.id, as_json=arguments.json)
        if code == 0 and not arguments.json:
            _compared(workspace.jobs.show(job.id).result)
        return code


def _compared(found: dict[str, Any]) -> None:
    """The verdict and what it rests on, for people."""
    print(found["verdict"])
    for line in (*found["sentences"], *(f"{name}: {words}" for name, words in found["fits"].items())):
        print(f"  {line}")
    for pair in found["pairs"]:
        print(f"  {pair['a']} x {pair['b']}: overlap {pair['overlap']:+.2f}, shared directions {pair['shared']:.2f}, {pair['layers']} layers in common")


def _run(workspace: "Workspace", arguments: argparse.Namespace, kind: str, values: dict[str, Any], told: Callable[[dict[str, Any]], None] | None = None) -> int:
    output = {"output": str(Path(arguments.output).expanduser().absolute()) if arguments.output else None, "dtype": arguments.dtype}
    named = {"name": arguments.name, "format": arguments.format} if "format" in vars(arguments) else {}
    job = workspace.tools.run(kind, {**values, **output, **named})
    if arguments.json:
        emit({"kind": "submitted", "job": job.id})
    else:
        tell(f"job {job.id}")

    def seen(event: Event) -> Event:
        if isinstance(event, Exported) and not Path(event.path).is_absolute():
            return event.model_copy(update={"path": str(workspace.jobs.file(job.id, event.path))})
        return event

    code = follow(workspace, job.id, as_json=arguments.json, seen=seen)
    if code == 0 and not arguments.json:
        (told or _told)(workspace.jobs.show(job.id).result)
    return code


def _told(result: dict[str, Any]) -> None:
    """What was kept and what was lost, for people."""
    if "layers" not in result:
        return
    low, high = result["ranks"]
    ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
    lost = f"residual {result['residual']:.2%} overall, at most {result['worst_residual']:.2%}" if result["worst_residual"] > 1e-6 else "nothing lost"
    layers = f"{result['layers']} layer{'' if result['layers'] == 1 else 's'}"
    tell(f"{layers} of {ranks}; {lost}")


def _stack(workspace: "Workspace", texts: list[str]) -> list[dict[str, Any]]:
    rows = [LoraWeight.parse(text) for text in texts]
    return [row.model_copy(update={"name": _lora(workspace, row.name)}).model_dump() for row in rows]


def _lora(workspace: "Workspace", name: str) -> str:
    return locate(name, lambda name: knows(workspace.library.find, name) or knows(workspace.jobs.show, name))


def _base(workspace: "Workspace", name: str) -> str:
    def known(name: str) -> bool:
        try:
            workspace.bases.find(name)
        except BaseError:
            return False
        return True

    return locate(name, known)
