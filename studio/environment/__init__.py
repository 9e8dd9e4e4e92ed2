"""The virtual environment beside launch.py: made, checked, updated. Standard library only; nothing here is imported by the studio itself."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from studio.environment.errors import SetupError
from studio.environment.setup import ready

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAX_TEST_WORKERS = 4  # each holds a torch and a base model, about 1 GiB


def main(root: str | Path, args: Sequence[str]) -> int:
    """Exit code of `python launch.py ARGS`; the environment is set up first where that is needed."""
    arguments = list(args)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        arguments.insert(0, "serve")
    testing = arguments[0] == "test"
    try:
        python = ready(Path(root), extras={"test"} if testing else set())
        if testing:
            return _test(python, Path(root), arguments[1:])
        return _start(python, ["-m", "studio", *arguments])
    except SetupError as error:
        print(f"LoRA Studio: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Start again to go on from here.", file=sys.stderr)
        return 130


def _environ() -> dict[str, str]:
    """The environment without what would make the studio import from elsewhere."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")}


def _start(python: Path, arguments: list[str]) -> int:
    command = [str(python), "-P", *arguments]
    if sys.platform != "win32":
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(command[0], command, _environ())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child hears Ctrl+C too and decides
    return subprocess.call(command, env=_environ())


def _test(python: Path, root: Path, arguments: list[str]) -> int:
    """Run pytest on the checkout; workers share the cores, so that torch does not start more threads than there are."""
    import shutil

    if not any(shutil.which(browser) for browser in BROWSERS):
        how = "sudo apt install chromium, or winget install Google.Chrome"
        print(f"No Chromium or Chrome found, the browser tests will fail. Install one, for example: {how}", file=sys.stderr)
    environ = _environ()
    cores = os.cpu_count() or 1
    workers = min(cores + 1, MAX_TEST_WORKERS)  # one more than cores: many tests wait for a process that they started
    chosen = any(argument.startswith(("-n", "--numprocesses", "--pdb")) for argument in arguments)
    if not chosen:
        # A worker goes through neighbouring files, so that what they share is made once, and takes from another one when it has none left
        arguments = ["-n", str(workers), "--dist", "worksteal", *arguments]
        environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // workers)))
    return subprocess.call([str(python), "-m", "pytest", *arguments], cwd=root, env=environ)
