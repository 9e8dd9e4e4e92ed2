"""Loaded once into the process that worker processes are forked from: what costs a worker its seconds of start-up."""

import os
import sys
from pathlib import Path

import torch

import studio.generation.sampler
import studio.lora.formats
import studio.lora.proof
import studio.training.loop  # noqa: F401
from studio import families, killpoints
from studio.families import sources
from studio.jobs import worker

torch.set_num_threads(1)
_base = sources.find("demo-sdxl")
families.get(_base.family).load(_base, ["denoiser"], torch.float32, torch.device("cpu"))


def work(data: str, device: str, kill_at: str) -> None:
    """A worker, as `python -m studio.jobs.worker` is one, with output to its log."""
    os.setsid()
    log = os.open(Path(data) / "workers" / device / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    killpoints.arm(kill_at)
    sys.exit(worker.main(data, device))
