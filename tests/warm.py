"""Loaded once into the process that workers, ranks and command lines of the tests are forked from: what costs each its seconds of start-up."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import FluxPipeline, StableDiffusionXLPipeline  # noqa: F401  imported when first named
from PIL import Image

import studio.cli.parser
import studio.evaluation.probe
import studio.generation.sampler
import studio.lora.formats
import studio.lora.header
import studio.lora.proof
import studio.training.loop
import studio.training.team
import studio.workspace  # noqa: F401
from studio import cli, families, killpoints
from studio.families import sources
from studio.families.parts import CONFIGS
from studio.jobs import rank as jobs_rank
from studio.jobs import worker
from studio.jobs.processes import WorkerFolder
from studio.lora import crosscheck

torch.set_num_threads(1)
Image.init()
for _base in sources.builtin():
    _family = families.get(_base.family)
    _family.load(_base, ["denoiser", "vae", "text"], torch.float32, torch.device("cpu"))
    for _folder in (CONFIGS / _base.family, _base.path):
        crosscheck.shapes(_folder / _family.facts.denoiser, encoder=False)


def work(data: str, device: str, kill_at: str, environ: Mapping[str, str]) -> None:
    """A worker, as `python -m studio.jobs.worker` is one, with output to its log."""
    os.setsid()
    _become(environ)
    log = WorkerFolder(Path(data) / "workers", device, environ["STUDIO_NODE"]).log
    _say_to(log, log)
    torch.set_num_threads(1)
    killpoints.arm(kill_at)
    sys.exit(worker.main(data, device))


def command(arguments: Sequence[str], folder: str, environ: Mapping[str, str], out: str, err: str) -> None:
    """A command line, as `python -m studio` is one, with its words in two files."""
    _become(environ)
    os.chdir(folder)
    _say_to(Path(out), Path(err))
    sys.exit(cli.main(arguments))


def rank(arguments: Sequence[str], environ: Mapping[str, str], heard: str, said: str) -> None:
    """One of several processes that train together, as `python -m studio.jobs.rank` is one; `heard` and `said` are named pipes."""
    _become(environ)
    os.dup2(os.open(heard, os.O_RDONLY), 0)
    os.dup2(os.open(said, os.O_WRONLY), 1)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    code = jobs_rank.main(*arguments)
    sys.stderr.flush()
    os._exit(code)


def _become(environ: Mapping[str, str]) -> None:
    """The environment of whoever asked for this process, not that of the one it was forked from."""
    os.environ.clear()
    os.environ.update(environ)


def _say_to(out: Path, err: Path) -> None:
    for number, path in ((1, out), (2, err)):
        written = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(written, number)
        os.close(written)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  it lives as long as the process
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
