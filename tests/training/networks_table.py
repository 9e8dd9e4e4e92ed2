"""Train every kind of network for as many steps on the same pictures and write what it was worth into assets/docs/networks.md.

    python -m tests.training.networks_table [STEPS]

All runs have the settings, seed, noise and held-out pictures in common; only the network differs.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from studio.config import TrainConfig
from studio.data.images import read_set
from studio.families import sources
from studio.lora import formats
from studio.training import checkpoint
from studio.training.loop import train

from .conftest import Asked

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "assets" / "docs" / "networks.md"
BEGIN, END = "<!-- figures: python -m tests.training.networks_table -->\n", "<!-- end of figures -->"
BASES = ("demo-sdxl", "demo-flux")
STEPS, SET, RANK = 40, "woodcut", 8
NETWORKS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoRA+ (16)": {"lora_plus_ratio": 16},
    "rsLoRA": {"rank_stabilized": True},
    "PiSSA": {"init": "pissa"},
    "OLoRA": {"init": "olora"},
    "DoRA": {"network": "dora"},
    "LoHa": {"network": "loha"},
    "LoKr": {"network": "lokr"},
    "AdaLoRA": {"network": "adalora"},
    "LoRA on nf4": {"base_format": "nf4"},
    "LoRA on int8": {"base_format": "int8"},
    "LoRA on fp8": {"base_format": "fp8"},
}


def measured(base: str, settings: dict[str, Any], steps: int, folder: Path, cache: Path) -> dict[str, Any]:
    """Held-out losses before and after, and the size of the file."""
    config = TrainConfig(
        images=SET, base=base, resolution=64, batch_size=2, rank=RANK, steps=steps, seed=1, validation_fraction=0.25, validation_every=steps, **settings
    )
    images = read_set(ROOT / "assets" / "sets" / SET)
    events = list(train(config, sources.find(base), images, folder, cache, requests=Asked(), preview=None, device="cpu"))
    losses = [event.loss for event in events if event.kind == "validation"]
    adapter = checkpoint.adapter(folder / "checkpoints" / f"step-{steps:06d}")
    file = folder / "file.safetensors"
    formats.write(adapter, file, dtype="fp16")
    return {"before": losses[0], "after": losses[-1], "bytes": file.stat().st_size}


def table(steps: int) -> str:
    rows = ["| network | " + " | ".join(f"{base}: held-out loss, of the base's | file" for base in BASES) + " |", "| --- |" + " --- |" * 2 * len(BASES)]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for title, settings in NETWORKS.items():
            cells = []
            for base in BASES:
                found = measured(base, settings, steps, work / f"{title} {base}", work / "cache")
                cells += [f"{found['after'] / found['before']:.1%}", f"{found['bytes'] / 1000:.0f} kB"]
                print(title, base, found, flush=True)
            rows.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    torch.set_num_threads(1)
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS
    found = table(steps)
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{steps} steps, rank {RANK}, set {SET}, 64 px.\n\n{found}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
