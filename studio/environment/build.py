"""Which build of torch suits this machine, and where pip finds it."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_INDEX = "https://download.pytorch.org/whl/cu130"
QUICK = ("--retries", "1", "--timeout", "10")  # an index that may be out of reach must not hold up the set-up


@dataclass(frozen=True)
class Torch:
    """kind: "cuda" for an NVIDIA card, "cpu" without one (on a Mac that build has MPS), "index" where the user named the index."""

    kind: Literal["cuda", "cpu", "index"]
    index: str = ""

    @property
    def title(self) -> str:
        if self.kind == "index":
            return f"from {self.index}"
        if sys.platform == "darwin":
            return "for Apple GPUs" if platform.machine() == "arm64" else "for the CPU"
        return "for NVIDIA cards" if self.kind == "cuda" else "for the CPU"

    @property
    def disk_gib(self) -> int:
        """Free space that a fresh set-up needs, unpacking included."""
        return 4 if self.kind == "cpu" else 11


def choose(environ: Mapping[str, str], remembered: Torch | None) -> Torch:
    """STUDIO_TORCH_INDEX wins and is remembered ("auto" forgets it); else a card decides, and a card seen once stays."""
    named = environ.get("STUDIO_TORCH_INDEX", "").strip()
    if named and named != "auto":
        return Torch("index", named)
    if remembered and remembered.kind != "cpu" and named != "auto":
        return remembered
    return Torch("cuda" if has_nvidia_card() else "cpu")


def has_nvidia_card() -> bool:
    if sys.platform == "darwin":
        return False
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return os.path.exists("/proc/driver/nvidia/version")
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def attempts(torch: Torch) -> list[list[str]]:
    """pip arguments to try in turn, best first. The plain index comes last: on Linux its build carries CUDA, which also runs on a CPU but is large."""
    if torch.kind == "index":
        return [["--index-url", torch.index]]
    if torch.kind == "cuda":
        return [["--index-url", CUDA_INDEX, *QUICK], []] if sys.platform == "win32" else [[]]
    if sys.platform == "linux":
        local = ["--no-index"]  # a build that the machine's own pip configuration holds ready (find-links)
        return [local, ["--index-url", CPU_INDEX, *QUICK], []]
    return [[]]
