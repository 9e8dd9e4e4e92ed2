"""`python -m studio.bench SPEC`: fill a table in a process of its own. SPEC is a JSON object; `lora-studio bench` writes it."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from studio.bench import floor, generation, memory, report, subjects, training
from studio.bench.cases import Case, Spec
from studio.bench.floor import number_format
from studio.bench.subjects import Subject
from studio.errors import StudioError

# task -> what measures a row of it
TASKS: dict[str, Callable[[Case, Subject, int, int], dict[str, Any]]] = {"train": training.measure}


def main(arguments: list[str]) -> int:
    values = json.loads(arguments[0])
    out = Path(values.pop("out")) if values.get("out") else None
    as_json = values.pop("json")
    values.pop("out", None)
    try:
        spec = Spec.of(values)
        rows = []
        for row in measured(spec, out, torch.device(_device())):
            rows.append(row)
            if as_json:
                sys.stdout.write(json.dumps(row) + "\n")
            else:
                sys.stderr.write(_told(row) + "\n")
            sys.stdout.flush()
            sys.stderr.flush()
    except StudioError as error:
        sys.stderr.write(f"lora-studio: {error}\n")
        return error.exit_code
    if not as_json:
        drawn = [row for row in rows if row["task"] == "generate"]
        trained = [row for row in rows if row["task"] == "train"]
        told = json.dumps(report.machine(torch.device(_device())))
        tables = [told, report.table(trained) if trained else "", generation.text(drawn), memory.text([row for row in rows if row["task"] == "memory"])]
        sys.stdout.write("\n\n".join(table for table in tables if table) + "\n")
    return 3 if any("error" in row for row in rows) else 0


def measured(spec: Spec, out: Path | None, device: torch.device) -> Iterator[dict[str, Any]]:
    """Every row of the table, those that `out` holds already as they stand there."""
    if "generate" in spec.tasks:
        for row in generation.table(spec, out, device):
            report.keep(out, row)
            yield row
    if "memory" in spec.tasks:
        for row in memory.table(spec, out, device):
            report.keep(out, row)
            yield row
    found = report.finished(out)
    ceilings: floor.Card | None = None
    subject: Subject | None = None
    loaded: tuple[str, str] | None = None
    flops: dict[tuple[str, int], float] = {}
    for case in spec.cases():
        if case.key in found:
            yield found[case.key]
            continue
        ceilings = ceilings or floor.card(device, spec.precisions)
        if subject is None or loaded != (case.family, case.precision):
            subject = None  # let go of one base before the next is loaded
            subject = subjects.load(case.family, spec.weights, number_format(case.precision), device)
            loaded = (case.family, case.precision)
        place = (case.family, case.resolution)
        if place not in flops:
            flops[place] = floor.forward_flops(subject, case.resolution)
        row = _row(case, subject, spec, ceilings, flops[place])
        report.keep(out, row)
        yield row


def _row(case: Case, subject: Subject, spec: Spec, ceilings: floor.Card, flops: float) -> dict[str, Any]:
    """One measured row; an error of its own is part of it, so that the others are still measured."""
    row = {"key": case.key, **asdict(case), "weights": spec.weights, "rank": spec.rank, "load_seconds": subject.seconds}
    try:
        row |= TASKS[case.task](case, subject, spec.steps, spec.rank)
    except (RuntimeError, StudioError) as error:
        return row | {"error": " ".join(str(error).split())[:300]}
    low = floor.floor(case, subject, ceilings, flops)
    work = (2 if case.task == "train" else 1) * flops * case.batch / ceilings.flops[case.precision]
    figures = {"floor_seconds": round(low, 5), "mfu_percent": round(100 * work / row["seconds"], 1), "forward_tflop_per_picture": round(flops / 1e12, 4)}
    figures |= {"matrix_tflops": round(ceilings.flops[case.precision] / 1e12, 2), "copy_gbytes_per_second": round(ceilings.bandwidth / 1e9, 1)}
    return row | figures | {"machine": report.machine(subject.components.device)}


def _told(row: dict[str, Any]) -> str:
    if row["task"] == "generate":
        return f"{row['key']}: {generation.told(row)}"
    if row["task"] == "memory":
        return f"{row['key']}: {row.get('error') or format(row['seconds'], '.4f') + ' s'}"
    figure = row.get("error") or f"{row['seconds']:.4f} s a step, {row['pictures_per_second']:.2f} pictures/s"
    return f"{row['key']}: {figure}"


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
