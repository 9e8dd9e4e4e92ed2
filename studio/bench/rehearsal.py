"""`python -m studio.bench.rehearsal JOB`: two steps of a run on its largest pictures, planned memory beside what was taken, as one JSON line.

JOB is a JSON object: settings, base, size (width, height) and device; `lora-studio train --plan` writes it.
"""

import json
import sys
from pathlib import Path

import torch

from studio import config as settings
from studio.bench.memory import rehearse
from studio.config import TrainConfig
from studio.errors import StudioError
from studio.families.base import Base

STEPS = 2
# What a rehearsal leaves out: it takes no look at held-out pictures, draws nothing and goes on from nothing.
WITHOUT = {"validation_fraction": 0.0, "sample_every": 0, "save_every": 0, "epochs": None, "start_from": None, "output": None, "trackers": ()}
PICTURES_OF_OTHERS = {"more_images": (), "regularization_images": (), "masked_loss": False, "early_stop": None}


def main(arguments: list[str]) -> int:
    job = json.loads(arguments[0])
    base = Base(**{**job["base"], **{key: Path(job["base"][key]) for key in ("path", "vae", "encoders") if job["base"][key]}})
    known = TrainConfig.model_fields
    values = {**job["settings"], **{name: value for name, value in {**WITHOUT, **PICTURES_OF_OTHERS}.items() if name in known}, "steps": STEPS}
    try:
        config = settings.build(TrainConfig, values)
        width, height = job["size"]
        found = rehearse(base, config, (width, height), torch.device(job["device"]), max(2, config.batch_size or 1))
    except (StudioError, RuntimeError) as error:
        sys.stderr.write(f"lora-studio: {' '.join(str(error).split())[:300]}\n")
        return 3
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
