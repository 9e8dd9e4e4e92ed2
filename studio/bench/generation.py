"""Drawing measured side by side in one process: plain diffusers and PEFT against the studio's stack, by mode and way to run.

    lora-studio bench --tasks generate --weights random --resolutions 1024 --precisions bf16 --modes graph --steps 30

Speed does not depend on the values of the weights, so full-size architectures with random ones need no download. Every figure is
the median of a few looks of the denoiser (a guided pair where the family draws away from a prompt), after a warm-up, ended by
waiting for the device; loops and whole pictures are timed as they stand.
"""

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch

from studio.bench import plainly, report
from studio.bench.cases import Spec
from studio.bench.drawn import Drawn, adapters, load
from studio.bench.floor import number_format, synchronize
from studio.config import LoraWeight
from studio.errors import StudioError
from studio.families.base import Components
from studio.generation import sampler
from studio.generation.running import Speed, release, running
from studio.generation.stack import Mode, Rows, Stack
from studio.lora import formats
from studio.lora.adapter import Adapter

LOOKS, WARM = 8, 4
TURNS = 7  # of looks with and without a stack
MOST = {"flux": 28}  # steps that what is wanted of a family is told for
SHORTER = 10  # steps where a ratio is asked for, or a difference
STACKED = 4  # adapters of the stack that is measured
GIB = 2**30


def table(spec: Spec, out: Path | None, device: torch.device) -> Iterator[dict[str, Any]]:
    """All rows that are asked for: a base at a time, plain first, then the studio in every mode that draws."""
    speeds: list[Any] = [mode for mode in spec.modes if mode in get_args(Speed)] or ["auto"]
    machine = report.machine(device)
    for family, precision, resolution in product(spec.families, spec.precisions, spec.resolutions):
        gc.unfreeze()
        drawn = load(family, spec.weights, resolution, number_format(precision), device)
        gc.freeze()  # as a worker does that keeps a base
        place = {"task": "generate", "family": family, "resolution": resolution, "precision": precision, "weights": spec.weights}
        with tempfile.TemporaryDirectory() as folder:
            for row in measured(drawn, speeds, spec.steps, Path(folder)):
                yield {"key": f"generate/{family}/{resolution}/{precision}/{row['who']}/{row['what']}", **place, **row, "machine": machine}


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows for people, in the order in which they were measured."""
    return "\n".join(f"{row['key'].removeprefix('generate/'):80}  {told(row)}" for row in rows)


def told(row: Mapping[str, Any]) -> str:
    """Seconds of a row, and of its parts, or what went wrong."""
    parts = {name: value for name, value in row.items() if name in ("ratio", "times") or name.endswith("_seconds")}
    return row.get("error") or f"{row['seconds']:.4f} s" + "".join(f"  {name.removesuffix('_seconds')} {value:.4g}" for name, value in parts.items())


def measured(drawn: Drawn, speeds: Sequence[Speed], steps: int, folder: Path) -> Iterator[dict[str, Any]]:
    """All rows of one base, what is asked for most first. Each says what was measured and its seconds."""
    steps = min(steps, MOST.get(drawn.c.facts.name, steps))
    rows: Rows = [(one, 0.8 / (i + 1)) for i, one in enumerate(adapters(drawn.c, STACKED, 16))]
    for speed in speeds:
        yield from _guarded(f"studio {speed}", lambda speed=speed: _stacks(drawn, speed, steps, rows, folder / f"{speed}-files"))
        yield from _guarded(f"studio {speed}", lambda speed=speed: _picture(drawn, speed, steps, rows, folder))
        _bare(drawn.c)
    yield from _guarded("plain", lambda: plainly.rows(drawn, steps, lambda look: _median(drawn, look)))
    for speed in speeds:
        yield from _guarded(f"studio {speed}", lambda speed=speed: _cached(drawn, speed, min(steps, SHORTER)))
        yield from _guarded(f"studio {speed}", lambda speed=speed: _batched(drawn, speed, rows))
        yield from _guarded(f"studio {speed}", lambda speed=speed: _served(drawn, speed, min(steps, SHORTER), rows, folder / f"{speed}-served"))
        _bare(drawn.c)
    yield from _guarded("plain", lambda: plainly.stacked(drawn, steps, STACKED, lambda look: _median(drawn, look)))


def _bare(c: Components) -> None:
    """The base without what pictures left on it: graphs, and a stack."""
    release(c)
    sampler.stack_on(c).clear()


def _stacks(drawn: Drawn, speed: Speed, steps: int, rows: Rows, folder: Path) -> Iterator[dict[str, Any]]:
    """Looks under every kind of stack, changes of it, and the loop."""
    c, stack = drawn.c, Stack(drawn.c)
    try:
        with running(c, lambda: stack.layout, speed) as runner:
            began = time.perf_counter()
            look = drawn.look()
            for _ in range(WARM):
                look()
            synchronize(c.device)
            yield {"what": "warm-up", "seconds": time.perf_counter() - began, **runner.facts}
            yield {"what": "look, no LoRA", "seconds": _median(drawn, look)}
            first = {}
            for mode in ("baked", "live"):
                first[mode] = list(_changes(drawn, stack, rows, mode, look))
                yield {"what": f"look, {mode} {len(rows)}", "seconds": _median(drawn, look), "layers": max(1, stack._live.layers)}
            yield from _in_turns(drawn, stack, rows, look)
            files = _written(drawn, folder)
            for mode in ("baked", "live"):
                yield from first[mode]
                yield _unseen(drawn, stack, mode, look, files)
            stack.set([])
            yield {"what": f"loop of {steps}, no LoRA", "seconds": _loop(drawn, steps)}
            stack.set(rows, mode="baked")
            yield {"what": f"loop of {steps}, baked {len(rows)}", "seconds": _loop(drawn, steps)}
    finally:
        stack.clear()


def _changes(drawn: Drawn, stack: Stack, rows: Rows, mode: Mode, look: Callable[[], Any]) -> Iterator[dict[str, Any]]:
    """From a changed stack to the end of the first look: adapters in main memory that were not there before, and a slider to and fro."""
    moved: Rows = [(one, 0.31) for one, _ in rows]
    for name, change in (("new adapters", rows), ("slider", moved), ("a slider moved back", rows)):
        synchronize(drawn.c.device)
        began = time.perf_counter()
        stack.set(change, mode=mode)
        synchronize(drawn.c.device)
        took = time.perf_counter() - began
        look()
        synchronize(drawn.c.device)
        yield {"what": f"change, {mode} {len(rows)}, {name}", "seconds": time.perf_counter() - began, "stack_seconds": took}
    for _ in range(WARM):
        look()


def _written(drawn: Drawn, folder: Path) -> list[Path]:
    """Files of more adapters than a stack keeps the factors of."""
    folder.mkdir(parents=True)
    files = [folder / f"{i}.safetensors" for i in range(2 * STACKED)]
    for file, one in zip(files, adapters(drawn.c, len(files), 16, seed=1), strict=True):
        formats.write(one, file, dtype="fp16")
    return files


def _unseen(drawn: Drawn, stack: Stack, mode: Mode, look: Callable[[], Any], written: Sequence[Path]) -> dict[str, Any]:
    """From the files of adapters that were never seen to the end of the first look, part by part; the last of several such changes."""
    parts: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        found = call()
        synchronize(drawn.c.device)
        parts[f"{name}_seconds"] = time.perf_counter() - began
        return found

    first = 0.0
    for files in (written[:STACKED], written[STACKED:]):
        synchronize(drawn.c.device)
        read = timed("read", lambda files=files: _read(files))
        timed("carry", lambda read=read: [stack._key(one) for one in read])
        timed("stack", lambda read=read: stack.set([(one, 0.5) for one in read], mode=mode))
        timed("look", look)
        for _ in range(WARM):
            look()
        first = first or sum(parts.values())
    return {"what": f"change, {mode} {STACKED}, new files", "seconds": sum(parts.values()), **parts, "first_time_seconds": first}


def _read(files: Sequence[Path]) -> list[Adapter]:
    """As a worker reads the files of a stack: all at once."""
    with ThreadPoolExecutor(len(files)) as readers:
        return list(readers.map(lambda file: formats.read(file, stored=True), files))


def _in_turns(drawn: Drawn, stack: Stack, rows: Rows, look: Callable[[], Any]) -> Iterator[dict[str, Any]]:
    """Looks with and without the stack in turns, so that a machine that slows down meanwhile does not tell; ratios turn by turn."""
    ways: dict[str, tuple[Rows, Mode]] = {"no LoRA": ((), "auto"), "baked": (rows, "baked"), "live": (rows, "live")}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    changes: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, (stacked, mode) in ways.items():
            synchronize(drawn.c.device)
            began = time.perf_counter()
            stack.set(stacked, mode=mode)
            synchronize(drawn.c.device)
            changes[name].append(time.perf_counter() - began)
            look()
            seconds[name].append(_median(drawn, look, 3))
    for name in ("baked", "live"):
        ratios = sorted(one / plain for one, plain in zip(seconds[name], seconds["no LoRA"], strict=True))
        change = statistics.median(one / plain for one, plain in zip(changes[name], seconds["no LoRA"], strict=True))
        told = {"ratio": statistics.median(ratios), "ratios": [round(one, 4) for one in ratios], "change_in_looks": change}
        yield {"what": f"{name} {len(rows)} against no LoRA, in turns", "seconds": statistics.median(seconds[name]), **told}


def _batched(drawn: Drawn, speed: Speed, rows: Rows) -> Iterator[dict[str, Any]]:
    """One batch of pictures with a LoRA each, against the same pictures one by one, in pictures times looks a second."""
    each: list[Rows] = [[row] for row in rows]
    stack = Stack(drawn.c)
    try:
        with running(drawn.c, lambda: stack.layout, speed):
            look = drawn.look(len(each))
            stack.set_each(each, [[f"{i}"] for i in range(len(each))])
            for _ in range(WARM):
                look()
            together = _median(drawn, look) / len(each)
            single, seconds = drawn.look(), []
            for one in [*each, *each]:
                stack.set(one, mode="baked")
                single()
                seconds.append(_median(drawn, single, 3))
            alone = statistics.median(seconds)
            yield {"what": f"look a picture, {len(each)} stacks in one batch", "seconds": together, "one_by_one_seconds": alone, "times": alone / together}
    finally:
        stack.clear()


def _loop(drawn: Drawn, steps: int) -> float:
    drawn.loop(2)
    synchronize(drawn.c.device)
    began = time.perf_counter()
    drawn.loop(steps)
    synchronize(drawn.c.device)
    return time.perf_counter() - began


def _picture(drawn: Drawn, speed: Speed, steps: int, rows: Rows, folder: Path) -> Iterator[dict[str, Any]]:
    """Whole pictures through the sampler, file included, base and prompt warm; the first of a stack with its change, and looks until a graph is captured."""
    moving: Rows = [(one, LoraWeight(name="x", weight=0.4, schedule=((0.0, 1.0), (1.0, 0.5)))) for one, _ in rows]
    for name, stack in (("no LoRA", ()), (f"baked {len(rows)}", rows), (f"live {len(rows)}, moving over the steps", moving)):
        first, seconds = (drawn.picture(stack, speed, steps, folder / f"{speed}-{i}") for i in range(2))
        yield {"what": f"picture of {steps} steps, {name}", "seconds": seconds, "first_seconds": first}


def _cached(drawn: Drawn, speed: Speed, steps: int) -> Iterator[dict[str, Any]]:
    """Looks with first-block caching, whole and short. What share of them is short is the picture's, which random weights do not tell."""
    with running(drawn.c, lambda: "", speed, cache=1.0) as runner:
        assert runner.cache is not None
        for name, threshold in (("whole", 0.0), ("short", float("inf"))):
            runner.cache.threshold = threshold
            look = drawn.look()
            for _ in range(WARM):
                look()
            before = runner.cache.short
            seconds = _median(drawn, look)
            yield {"what": f"look, first-block cache, {name}", "seconds": seconds, "short_looks": runner.cache.short - before, **runner.facts}
        runner.cache.threshold = 0.1
        found = drawn.loop(steps)
        synchronize(drawn.c.device)
        began = time.perf_counter()
        again = drawn.loop(steps)
        synchronize(drawn.c.device)
        took = time.perf_counter() - began
    with running(drawn.c, lambda: "", "eager", cache=0.1) as runner:
        plain = drawn.loop(steps)
    norm = plain.norm()
    differences = {"difference_to_eager": float((found - plain).norm() / norm), "difference_to_itself": float((again - found).norm() / norm)}
    yield {"what": f"loop of {steps}, first-block cache 0.1", "seconds": took, **differences, **runner.looks}


def _served(drawn: Drawn, speed: Speed, steps: int, rows: Rows, folder: Path) -> Iterator[dict[str, Any]]:
    """Orders of a picture and a LoRA each in one pass, against the same orders one by one: pictures with VAE, file and change of stack."""
    each: list[Rows] = [[row] for row in rows]
    for name in ("warm", "timed"):
        began = time.perf_counter()
        for i, one in enumerate(each):
            drawn.picture(one, speed, steps, folder / f"{name}-{i}")
        alone = time.perf_counter() - began
        together = drawn.pictures(each, speed, steps, folder / f"{name}-together")
    yield {"what": f"{len(each)} orders of a LoRA each in one pass", "seconds": together, "one_by_one_seconds": alone, "times": alone / together}


def _median(drawn: Drawn, look: Callable[[], Any], looks: int = LOOKS) -> float:
    seconds = []
    for _ in range(looks):
        synchronize(drawn.c.device)
        began = time.perf_counter()
        look()
        synchronize(drawn.c.device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _guarded(who: str, rows: Callable[[], Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The rows, called by who runs; an error ends them as a row of its own, so that the others are still measured."""
    try:
        for row in rows():
            peak = {"peak_gib": round(torch.cuda.max_memory_reserved() / GIB, 2)} if torch.cuda.is_available() else {}
            yield {"who": who, **{key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}, **peak}
    except (RuntimeError, StudioError) as error:
        yield {"who": who, "what": "error", "error": " ".join(str(error).split())[:300]}
