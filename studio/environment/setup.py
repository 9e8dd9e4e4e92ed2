"""Make the environment what pyproject.toml and constraints.txt say, and remember that it is."""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from studio.environment.build import Torch, attempts, choose
from studio.environment.errors import NotOffered, SetupError
from studio.environment.installer import Progress, install

PHASES = 5


@dataclass(frozen=True)
class Stamp:
    """What an environment was finished for. No stamp: it was not finished."""

    key: str
    extras: frozenset[str]
    torch: Torch

    def write(self, path: Path) -> None:
        content = {"key": self.key, "extras": sorted(self.extras), "torch": {"kind": self.torch.kind, "index": self.torch.index}}
        part = path.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1), encoding="utf-8")
        os.replace(part, path)


def read_stamp(path: Path) -> Stamp | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Stamp(content["key"], frozenset(content["extras"]), Torch(content["torch"]["kind"], content["torch"]["index"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def key_of(root: Path) -> str:
    """Changes when the wanted versions do, or the folder moves (an environment holds its own path)."""
    parts = [(root / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256(b"\0".join([*parts, os.fsencode(root)])).hexdigest()


def python_of(root: Path) -> Path:
    return root / ".venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def ready(root: Path, *, extras: set[str]) -> Path:
    """The environment's Python. Returns at once when its stamp fits, else sets up, repairs or updates."""
    python, path = python_of(root), root / ".venv" / "stamp.json"
    if _fits(root, extras):
        return python
    with _only_one(root):
        if _fits(root, extras):
            return python
        stamp = read_stamp(path)
        torch = choose(os.environ, stamp.torch if stamp else None)
        wanted = Stamp(key_of(root), frozenset(extras) | (stamp.extras if stamp else frozenset()), torch)
        begun = time.monotonic()
        changed = bool(stamp and stamp.torch != torch)
        path.unlink(missing_ok=True)
        _make(root, wanted, update=stamp is not None, new_torch=changed)
        wanted.write(path)
        print(f"Ready after {time.monotonic() - begun:.0f} s.\n", file=sys.stderr)
    return python


def _fits(root: Path, extras: set[str]) -> bool:
    stamp = read_stamp(root / ".venv" / "stamp.json")
    if stamp is None or not python_of(root).exists():
        return False
    return stamp.key == key_of(root) and extras <= stamp.extras and choose(os.environ, stamp.torch) == stamp.torch


def _make(root: Path, wanted: Stamp, *, update: bool, new_torch: bool) -> None:
    python = python_of(root)
    unfinished = not update and _runs(python)
    fresh = not update and not unfinished
    what = "first start, setting up" if fresh else "finishing the interrupted set-up" if unfinished else "updating"
    note = " (some minutes; once)" if fresh else ""
    print(f"LoRA Studio: {what} in {root / '.venv'}{note}", file=sys.stderr)
    if fresh or (update and not _runs(python)):
        _require_venv()
        _require_space(root, wanted.torch)
    progress = Progress(sys.stderr, PHASES)
    _fill(root, wanted, progress, new_torch=new_torch)
    broken = _check(root, progress)
    if broken and unfinished:
        print(f"  left half-installed: {', '.join(broken)}; starting over", file=sys.stderr)
        shutil.rmtree(root / ".venv")
        progress = Progress(sys.stderr, PHASES)
        _fill(root, wanted, progress, new_torch=False)
        broken = _check(root, progress)
    if broken:
        raise SetupError(f"{', '.join(broken)} did not install completely; delete {root / '.venv'} and start again")


def _fill(root: Path, wanted: Stamp, progress: Progress, *, new_torch: bool) -> None:
    """The four phases that install; each does nothing where its result is there already."""
    python, constraints = python_of(root), ["--constraint", str(root / "constraints.txt")]
    progress.phase("virtual environment")
    if not _runs(python):
        _create(root)
    progress.done()
    progress.phase("package installer")
    install(python, ["--upgrade", "--retries", "2", *constraints, "pip"], progress, root=root, bar="off")
    progress.done()
    progress.phase(f"torch {wanted.torch.title}")
    _install_torch(root, wanted.torch, progress, again=new_torch)
    progress.done()
    progress.phase("packages")
    extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
    more = ["--extra-index-url", wanted.torch.index] if wanted.torch.kind == "index" else []
    install(python, [*constraints, *more, "--editable", f"{root}{extras}"], progress, root=root)
    progress.done()


def _install_torch(root: Path, torch: Torch, progress: Progress, *, again: bool) -> None:
    pin = re.search(r"^torch==\S+", (root / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    if pin is None:
        raise SetupError(f"{root / 'constraints.txt'} names no torch version; restore the file (git checkout constraints.txt) and start again")
    extra = ["--force-reinstall"] if again else []
    choices = attempts(torch)
    for i, choice in enumerate(choices):
        try:
            install(python_of(root), [*extra, "--no-deps", *choice, pin[0]], progress, root=root)
            return
        except NotOffered:
            if i == len(choices) - 1:
                raise


def _check(root: Path, progress: Progress) -> list[str]:
    """Names of packages that are not whole; says which device torch found."""
    progress.phase("check")
    found = subprocess.run([str(python_of(root)), "-m", "studio.environment.verify"], cwd=root, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        lines = found.stderr.strip().splitlines() or ["no output"]
        progress.done("failed")
        return [f"torch ({lines[-1][:160]})"]
    result: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    progress.done("failed" if result["broken"] else f"torch {result['torch']}, {result['device']}")
    if result["note"]:
        print(f"  {result['note']}", file=sys.stderr)
    return list(result["broken"])


def _runs(python: Path) -> bool:
    """Whether this environment's Python and its pip start."""
    if not python.exists():
        return False
    try:
        return subprocess.run([str(python), "-c", "import pip"], capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _require_venv() -> None:
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise SetupError(f"this Python cannot make virtual environments; on Debian and Ubuntu: sudo apt install python{version}-venv, then start again")
    if sys.maxsize < 2**32:
        raise SetupError("this is a 32-bit Python, for which there is no torch; install the 64-bit one and start again")


def _require_space(root: Path, torch: Torch) -> None:
    free = shutil.disk_usage(root).free / 2**30
    if free < torch.disk_gib:
        raise SetupError(f"the disk of {root} has {free:.1f} GiB free and the set-up needs {torch.disk_gib}; free some space and start again")


def _create(root: Path) -> None:
    folder = root / ".venv"
    shutil.rmtree(folder, ignore_errors=True)
    base = getattr(sys, "_base_executable", "") or sys.executable  # not a virtual environment that happens to be active
    made = subprocess.run([base, "-m", "venv", str(folder)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        from studio.environment.errors import explain

        raise explain(made.stdout + made.stderr, root, root / ".setup" / "log.txt")


@contextlib.contextmanager
def _only_one(root: Path) -> Iterator[None]:
    """Hold the set-up lock; the system releases it when the process ends, however it ends."""
    folder = root / ".setup"
    try:
        folder.mkdir(exist_ok=True)
        (folder / "log.txt").write_text("", encoding="utf-8")
        lock = (folder / "lock").open("w")
    except OSError as error:
        if error.errno in (28, 122):
            raise SetupError(f"the disk of {root} is full; free some space and start again") from None
        raise SetupError(f"{root} cannot be written ({error.strerror}); move the folder to a place of your own and start again") from None
    with lock:
        if not _lock(lock):
            print("Another start is setting up this folder; waiting for it.", file=sys.stderr)
            while not _lock(lock):
                time.sleep(0.5)
        yield


def _lock(file: IO[str]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
