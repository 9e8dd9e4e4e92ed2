"""Every network, optimizer, schedule, objective and format of the base on both demo bases, and what each was worth on held-out pictures.

    python -m tests.training.matrix run FOLDER [--group networks]... [--base demo-sdxl]... [--steps 100] [--processes 2] [--device cpu] [--seconds 0]
    python -m tests.training.matrix table FOLDER...

`run` writes one JSON file a case into FOLDER and leaves those alone that are there, so it can be stopped and started again. `table` writes
the figures into assets/docs/networks.md. The cases of one base have settings, seed, noise and held-out pictures in common.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from studio.config import TrainConfig, build
from studio.data.images import ImageSet, read_set
from studio.evaluation import probe
from studio.families import sources
from studio.families.base import Base
from studio.lora import formats, proof
from studio.lora.adapter import Adapter
from studio.lora.header import completed
from studio.training import checkpoint
from studio.training.loop import train
from studio.training.validation import interval

from . import matrix_sets as sets
from .conftest import Asked

BASES = ("demo-sdxl", "demo-flux")
SETS = ("woodcut", "blueprint", "tilo")
STEPS, RANK = 100, 8
COMMON = {"resolution": 64, "batch_size": 4, "rank": RANK, "seed": 1, "validation_fraction": 0.4}
RATES = {"prodigy": 1.0, "lion": 5e-4, "came": 1e-3}  # what the docs advise where AdamW takes 2e-3

NETWORKS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoRA+ (16)": {"lora_plus_ratio": 16},
    "rsLoRA": {"rank_stabilized": True},
    "gaussian": {"init": "gaussian"},
    "PiSSA": {"init": "pissa"},
    "OLoRA": {"init": "olora"},
    "DoRA": {"network": "dora"},
    "LoHa": {"network": "loha"},
    "LoKr": {"network": "lokr"},
    "AdaLoRA": {"network": "adalora"},
}
PLACES: dict[str, dict[str, Any]] = {
    "attention+mlp": {"targets": "attention+mlp"},
    "all-linear": {"targets": "all-linear"},
    "full+conv (LoCon)": {"targets": "full+conv"},
    "DoRA, full+conv": {"network": "dora", "targets": "full+conv"},
    "LoHa, full+conv": {"network": "loha", "targets": "full+conv"},
    "LoKr, full+conv": {"network": "lokr", "targets": "full+conv"},
    "text encoders too": {"text_encoder_learning_rate": 5e-4},
    "dropout 0.1": {"dropout": 0.1},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    **{name: {"optimizer": name} for name in ("adamw8bit", "adafactor", "schedule-free")},
    **{name: {"optimizer": name, "learning_rate": RATES[name]} for name in ("lion", "came")},
    "prodigy": {"optimizer": "prodigy", "learning_rate": 1.0, "optimizer_options": ("d0=1e-4",)},
    "adamw, ema_decay 0.99": {"ema_decay": 0.99},
}
SCHEDULES = {name: {"lr_schedule": name} for name in ("linear", "cosine", "cosine-restarts", "polynomial")} | {"warmup_steps 20": {"warmup_steps": 20}}
BOTH_OBJECTIVES: dict[str, dict[str, Any]] = {
    "loss huber, snr": {"loss": "huber"},
    "loss huber, exponential": {"loss": "huber", "huber_schedule": "exponential"},
    "loss huber, constant": {"loss": "huber", "huber_schedule": "constant"},
    "input_perturbation": {"input_perturbation": 0.1},
    "masked_loss": {"masked_loss": True},
    "prior_prediction": {"prior_prediction": True},
    "captions drawn, shuffled, dropped": {"caption_shuffle": True, "caption_lines": "draw", "caption_dropout": 0.1},
    "more_resolutions": {"more_resolutions": (80,)},
    "preference_beta (pairs)": {"preference_beta": 2000.0},
}
NOISE_OBJECTIVES: dict[str, dict[str, Any]] = {
    "min_snr_gamma": {"min_snr_gamma": 5.0},
    "debiased": {"debiased": True},
    "noise_offset": {"noise_offset": 0.0357},
    "pyramid_noise": {"pyramid_noise": 6},
    "velocity, min_snr_gamma": {"min_snr_gamma": 5.0},
    "velocity, debiased": {"debiased": True},
    "velocity, zero_terminal_snr": {"zero_terminal_snr": True},
}
FLOW_OBJECTIVES: dict[str, dict[str, Any]] = {
    "timestep_sampling uniform": {"timestep_sampling": "uniform"},
    "timestep_sampling mode": {"timestep_sampling": "mode"},
    "logit-normal moved": {"timestep_mean": -0.5, "timestep_scale": 1.5},
    "flow_shift 2": {"flow_shift": 2.0},
}
FORMATS: dict[str, dict[str, Any]] = {name: {"base_format": name} for name in ("int8", "fp8", "nf4")} | {
    "nf4, DoRA": {"base_format": "nf4", "network": "dora"},
    "int8, AdaLoRA": {"base_format": "int8", "network": "adalora"},
}
FILES: dict[str, dict[str, Any]] = {f"LoRA, rank {rank}": {"rank": rank} for rank in (16, 8, 4)} | {
    f"AdaLoRA, rank 16 to {left}": {"network": "adalora", "rank": 16, "final_rank": left} for left in (8, 4, 2)
}
PROBED = ("lora", "dora", "adalora")


@dataclass(frozen=True)
class Case:
    group: str
    title: str
    base: str
    settings: dict[str, Any]
    images: str = "woodcut"

    @property
    def name(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in f"{self.group} {self.title} {self.base} {self.images}").strip("-")


def cases() -> list[Case]:
    """All of them; what stands first matters most, should time run out."""
    found: list[Case] = []
    for base in BASES:
        own = NOISE_OBJECTIVES if base == "demo-sdxl" else FLOW_OBJECTIVES
        groups = {"networks": NETWORKS, "places": PLACES, "optimizers": OPTIMIZERS, "schedules": SCHEDULES, "formats": FORMATS}
        for group, table in {**groups, "objectives": BOTH_OBJECTIVES | own}.items():
            found += [Case(group, title, base, settings) for title, settings in table.items()]
        found += [Case("full", f"all weights, rate {rate:g}", base, {"learning_rate": rate}) for rate in (1e-4, 2e-4, 5e-4, 1e-3)]
    for base in BASES:
        found += [Case("sizes", f"LoRA, rank {rank}", base, {"rank": rank}) for rank in (2, 4)]
        found += [Case("sizes", f"LoRA, rank {rank}, 300 steps", base, {"rank": rank, "steps": 300}) for rank in (1, 2)]
        for title in ("LoRA", "LoHa", "LoKr"):
            found += [Case("rates", f"{title}, rate {rate:g}", base, {**NETWORKS[title], "learning_rate": rate}) for rate in (1e-3, 4e-3, 8e-3)]
    found += [Case("files", title, base, settings, images) for images in SETS for base in BASES for title, settings in FILES.items()]
    for images in SETS[1:]:
        found += [Case("networks", title, base, settings, images) for base in BASES for title, settings in NETWORKS.items()]
        found += [Case("full", f"all weights, rate {rate:g}", base, {"learning_rate": rate}, images) for base in BASES for rate in (1e-4, 2e-4)]
    return found


def measured(case: Case, steps: int, device: str, work: Path) -> dict[str, Any]:
    """What came of a case: held-out losses before and after on the same draws, the file, and who read it back."""
    began = time.monotonic()
    steps = case.settings.get("steps", steps)
    base, images = given(case, work)
    config = build(TrainConfig, {"images": case.images, "base": case.base, **COMMON, "steps": steps, "validation_every": steps, **case.settings})
    folder, cache = work / case.name, work / "cache"
    if case.group == "full":
        from .matrix_full import full

        looks = full(config, base, images, folder, cache, device)
    else:
        events = list(train(config, base, images, folder, cache, requests=Asked(), preview=None, device=device))
        looks = [event.by_picture for event in events if event.kind == "validation"]
    row = {"group": case.group, "title": case.title, "base": case.base, "images": case.images, "steps": steps, "device": device}
    row |= {"torch": torch.__version__, "settings": {**COMMON, **case.settings}, **compared(looks[0], looks[-1])}
    if case.group != "full":
        last = folder / "checkpoints" / checkpoint.name_of(steps)
        adapter = checkpoint.adapter(last)
        row |= {"bytes": size(adapter, folder / "file.safetensors")} if case.group == "files" else written(adapter, base, folder)
        if config.network in PROBED and case.group in ("networks", "sizes"):
            row["probe"] = probed(config, base, images, last, folder, cache, device)
    return row | {"seconds": round(time.monotonic() - began, 1)}


def given(case: Case, work: Path) -> tuple[Base, ImageSet]:
    """The base and the pictures that the case needs: masks, pairs, or a base that predicts velocity, made where the case asks for them."""
    base = sources.find(case.base)
    folder = sets.SETS / case.images
    if case.settings.get("masked_loss"):
        folder = sets.masked(folder, work / "masked")
    if case.settings.get("preference_beta"):
        folder = sets.pairs(work / "pairs")
    if case.title.startswith("velocity"):
        base = sets.velocity(base, work / "velocity")
    return base, read_set(folder)


def compared(before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """Mean losses, and the mean of their differences picture by picture with its 95 % interval."""
    names = sorted(before)
    one, two = (torch.tensor([look[name] for name in names], dtype=torch.float64) for look in (before, after))
    between = interval(two - one)
    return {
        "before": float(one.mean()),
        "after": float(two.mean()),
        "change": float((two - one).mean()),
        "between": between,
        "lowered": between is not None and between[1] < 0,
        "pictures": {name: [before[name], after[name]] for name in names},
    }


def size(adapter: Adapter, file: Path) -> int:
    """Bytes of the file that is shared."""
    formats.write(adapter, file, dtype="fp16", metadata=completed({}, adapter, "matrix"))
    return file.stat().st_size


def written(adapter: Adapter, base: Base, folder: Path) -> dict[str, Any]:
    """The size of the shared file, and who read the adapter back with the same difference to the base: diffusers, PEFT's layers, LyCORIS."""
    from tests.lora.second_loader import lycoris, peft

    exact, words = folder / "exact.safetensors", completed({}, adapter, "matrix")
    n = size(adapter, folder / "file.safetensors")
    report: dict[str, Any] = {}
    try:
        formats.write(adapter, exact, dtype="fp32", metadata=words)
        report = proof.prove(exact, adapter, "kohya")
        second = {one["loader"]: {"worst": one["worst"] if one["run"] else None, "note": one["fault"] or one["note"]} for one in report["loaders"][1:]}
        for name, other in (("LyCORIS", lycoris), ("PEFT", peft)):
            try:
                second[name] = {"worst": other(exact, adapter, base), "note": ""}
            except Exception as error:  # what a loader of others cannot read is a result, and is shown as one
                second[name] = {"worst": None, "note": f"{type(error).__name__}: {error}"[:200]}
    finally:
        exact.unlink(missing_ok=True)
    clients = {row["client"]: row["loads"] if row["good"] or row["loads"] != "yes" else "otherwise" for row in report["clients"]}
    return {"bytes": n, "modules": len(adapter.layers), "own": report["loaders"][0]["worst"], "second": second, "clients": clients}


def probed(config: TrainConfig, base: Base, images: ImageSet, last: Path, folder: Path, cache: Path, device: str) -> dict[str, Any]:
    """The report of the rank probe with the sizes of both files."""
    state = checkpoint.state(last)
    subject = probe.Subject(checkpoint.adapter(last), build(TrainConfig, state.settings), base, images, state.images)
    search = probe.probe(subject, folder / "probe", cache, tolerance=probe.TOLERANCE, requests=Asked(), device=torch.device(device))
    found: probe.Probed = _returned(search)
    if found.adapter is None:
        return found.report
    return {**found.report, "bytes": size(found.adapter, folder / "trimmed.safetensors")}


def _returned(generator: Any) -> Any:
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value


def _worker(jobs: Any, steps: int, device: str, out: Path, until: float) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        while time.time() < until and (case := jobs.get()) is not None:
            try:
                row = measured(case, steps, device, Path(name))
                told = f"{row['before']:.4f} -> {row['after']:.4f} {row['between']} {row['seconds']} s"
            except Exception as error:  # one case that fails is a row of the table
                row = {"group": case.group, "title": case.title, "base": case.base, "images": case.images, "steps": steps, "device": device}
                row |= {"failed": f"{type(error).__name__}: {error}"[:300]}
                told = traceback.format_exc()
            (out / f"{case.name}.json").write_text(json.dumps(row, indent=1))
            print(f"{case.name}: {told}", flush=True)


def run(out: Path, chosen: list[Case], steps: int, processes: int, device: str, seconds: float) -> None:
    """Measure the cases that FOLDER lacks; after so many seconds none is begun any more."""
    out.mkdir(parents=True, exist_ok=True)
    left = [case for case in chosen if not (out / f"{case.name}.json").is_file()]
    print(f"{len(left)} cases", flush=True)
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    for case in [*left, *[None] * processes]:
        queue.put(case)
    until = time.time() + (seconds or 1e9)
    workers = [context.Process(target=_worker, args=(queue, steps, device, out, until)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def rows(folders: list[Path]) -> Iterator[dict[str, Any]]:
    for folder in folders:
        for file in sorted(folder.glob("*.json")):
            row = json.loads(file.read_text())
            settings = row.get("settings", {})
            yield row | {"settings": {**COMMON, **settings}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("run")
    one.add_argument("folder", type=Path)
    one.add_argument("--group", action="append", default=[])
    one.add_argument("--base", action="append", default=[])
    one.add_argument("--steps", type=int, default=STEPS)
    one.add_argument("--processes", type=int, default=2)
    one.add_argument("--device", default="cpu")
    one.add_argument("--seconds", type=float, default=0.0)
    verbs.add_parser("table").add_argument("folders", type=Path, nargs="+")
    arguments = parser.parse_args()
    if arguments.verb == "run":
        chosen = [case for case in cases() if case.group in (arguments.group or [case.group]) and case.base in (arguments.base or BASES)]
        run(arguments.folder, chosen, arguments.steps, arguments.processes, arguments.device, arguments.seconds)
    else:
        from .matrix_table import write

        write(list(rows(arguments.folders)))


if __name__ == "__main__":
    main()
