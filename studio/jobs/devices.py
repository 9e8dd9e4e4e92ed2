"""Which devices this machine has, asked without torch."""

import functools
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import SettingsError

_KNOWN = re.compile(r"cpu(:\d+)?|mps|xpu|cuda(:\d+)?")


@dataclass(frozen=True)
class Device:
    """`name` is torch's; `memory` in bytes, 0 where it is the machine's own."""

    name: str
    title: str
    memory: int = 0


def devices() -> list[Device]:
    """Devices that get a worker each: STUDIO_DEVICE (one or several, by commas), else what is found."""
    wish = os.environ.get("STUDIO_DEVICE", "").strip()
    if not wish:
        return _found()
    names = [name.strip() for name in wish.split(",") if name.strip()]
    wrong = next((name for name in names if not _KNOWN.fullmatch(name)), None)
    if wrong:
        raise SettingsError(
            f"STUDIO_DEVICE {wrong!r} is no device; use cpu, mps, cuda or cuda:0, several by commas; cpu:0,cpu:1 are two workers on the processor"
        )
    known = {device.name: device for device in _found()}
    return [known.get(name, Device(name, "processor" if torch_name(name) == "cpu" else name)) for name in dict.fromkeys(names)]


def torch_name(device: str) -> str:
    """What torch calls it: every worker of the processor, cpu:0 and cpu:1 alike, computes on the one that torch knows."""
    return "cpu" if device.startswith("cpu:") else device


def listed(names: str) -> list[str]:
    """The devices that a row or an inbox names, by commas."""
    return [name for name in names.split(",") if name]


def wanted(kind: str, settings: Mapping[str, Any], present: Sequence[str], together: int) -> int:
    """How many devices a job has to itself: a training one for every process, but processors are shared where there are too few.

    together: how many of those present one job can have.
    """
    processes = int(settings.get("processes") or 1) if kind == "train" else 1
    cards = bool(present) and "cuda" in present[0]
    return processes if cards else min(processes, max(1, together))


@functools.cache
def _found() -> list[Device]:
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return [Device("mps", "Apple GPU")]
    build = _torch_build()
    if build == "cuda" and (cards := _nvidia()):
        return cards
    if build == "hip" and Path("/dev/kfd").exists():
        return [Device("cuda:0", "AMD GPU")]
    return [Device("cpu", platform.processor() or "processor")]


def _torch_build() -> str:
    """cuda, hip or cpu, read from the installed torch's version file."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return "cpu"
    version = Path(spec.origin).with_name("version.py")
    text = version.read_text() if version.is_file() else ""
    for build in ("cuda", "hip"):
        if re.search(rf"^{build}[^=\n]*=\s*['\"]", text, re.M):
            return build
    return "cpu"


def _nvidia() -> list[Device]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (subprocess.SubprocessError, OSError):
        return []  # a driver that does not answer has no usable card
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # torch numbers the visible cards from 0; names and sizes are right where the variable lists indices
        picks = [pick.strip() for pick in visible.split(",") if pick.strip()]
        lines = [lines[int(pick)] if pick.isdigit() and int(pick) < len(lines) else lines[0] for pick in picks] if lines else []
    return [_card(i, line) for i, line in enumerate(lines) if line.strip()]


def _card(index: int, line: str) -> Device:
    name, _, memory = line.rpartition(",")
    megabytes = int(memory) if memory.strip().isdigit() else 0
    return Device(f"cuda:{index}", name.strip() or "NVIDIA GPU", megabytes * 2**20)
