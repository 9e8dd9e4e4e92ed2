"""train --plan: the memory plan of a run, and two steps of it where there is a GPU."""

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from studio.cli.output import emit, tell
from studio.config import TrainConfig
from studio.errors import RunError

if TYPE_CHECKING:
    from studio.workspace import Workspace


def fit(workspace: "Workspace", config: TrainConfig, as_json: bool) -> int:
    """Say what the run would take and how it would fit. The exit code is that of a run that fails where it does not."""
    found = workspace.fitting.plan(config)
    if as_json:
        emit({"kind": "plan", **{name: value for name, value in found.items() if name != "text"}})
    else:
        tell(f"{config.base} on {found['card']}")
        print(found["text"])
    job = workspace.fitting.rehearsal(config) if found["fits"] else None
    if job is not None:
        _rehearse(job, as_json)
    return 0 if found["fits"] else RunError.exit_code


def _rehearse(job: str, as_json: bool) -> None:
    """Two steps in a process of their own, so that this one never imports torch."""
    if not as_json:
        tell("two steps on the largest pictures ...")
    done = subprocess.run([sys.executable, "-m", "studio.bench.rehearsal", job], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunError((done.stderr.strip().splitlines() or ["the two steps failed without a word"])[-1].removeprefix("lora-studio: "))
    measured = json.loads(done.stdout.strip().splitlines()[-1])
    if as_json:
        return emit({"kind": "rehearsal", **measured})
    print(f"training planned        {measured['planned_gb']:>8.2f} GB, without driver and kernels")
    print(f"training, two steps     {measured['taken_gb']:>8.2f} GB ({measured['off_percent']:+.1f} % planned)")
    print(f"while encoding          {measured['encoding_gb']:>8.2f} GB reserved; {measured['seconds']:.2f} s a step")
    return None
