"""Worker processes from outside: their folders, whether they live, starting and ending them."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

import studio
from studio.errors import SettingsError
from studio.library.files import write_whole

HEARTBEAT_SECONDS = 2.0
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,59}")
FAR = "ray-"  # what names of devices and workers of a cluster begin with
SILENT_SECONDS = 15.0  # without a heartbeat for so long a living worker is shown as not responding


class WorkerState(BaseModel):
    """worker.json, rewritten at every heartbeat."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started: float
    device: str
    job: str = ""
    base: str = ""
    version: str = studio.__version__
    beat: float = 0.0


def alive(pid: int, started: float) -> bool:
    """Whether that very process still runs; another one that got its number does not count."""
    try:
        return abs(start_of(pid) - started) < 0.02 and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def own_node() -> str:
    """The name under which this process hands out jobs, where several share one data folder and database: STUDIO_NODE, else none."""
    node = os.environ.get("STUDIO_NODE", "").strip()
    if node and not _NODE.fullmatch(node):
        raise SettingsError(f"STUDIO_NODE {node!r}: use up to 60 letters, digits, dots, dashes and underscores")
    return node


class WorkerFolder:
    """workers/<device>/, or workers/<node>@<device>/: inbox/ of job ids, worker.json, stop, lock, log.txt, reserve."""

    def __init__(self, workers: Path, device: str, node: str = "") -> None:
        self.device = device
        self.node = node
        self.path = workers / (f"{node}@" * bool(node) + device.replace(":", "-"))

    @property
    def far(self) -> bool:
        """Whether its worker may be on another machine, where its process cannot be looked at from here."""
        return "@" in self.path.name or self.path.name.startswith(FAR)

    @property
    def inbox(self) -> Path:
        return self.path / "inbox"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def stop(self) -> Path:
        return self.path / "stop"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def reserve(self) -> Path:
        return self.path / "reserve"

    def keep_reserve(self, n_bytes: int) -> None:
        """Keep so much room on the disk for the moment when there is none left."""
        if not self.reserve.exists():
            self.reserve.write_bytes(os.urandom(n_bytes))  # zeros would be kept as nothing by file systems that compress

    def create(self) -> "WorkerFolder":
        self.inbox.mkdir(parents=True, exist_ok=True)
        return self

    def state(self) -> WorkerState | None:
        """The living worker's state; None if there is none."""
        try:
            state = WorkerState.model_validate_json((self.path / "worker.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return state if alive(state.pid, state.started) else None

    def quiet(self, seconds: float) -> bool:
        """Whether no worker, of this machine or another one, has said for so long that it is there. Told by repeated looks, see `still`."""
        try:
            return still(WorkerState.model_validate_json((self.path / "worker.json").read_bytes())) > seconds
        except (FileNotFoundError, ValidationError):
            return True

    def write_state(self, state: WorkerState) -> None:
        # No fsync: a state lost in a power cut is right, since its process is lost with it
        part = self.path / f".worker.{state.pid}.part"
        part.write_text(state.model_dump_json())
        os.replace(part, self.path / "worker.json")

    def waiting(self) -> list[str]:
        """Ids handed to the worker and not yet taken."""
        return sorted(entry.name for entry in self.inbox.iterdir() if not entry.name.startswith("."))

    def hand(self, job: str, devices: Sequence[str] = ()) -> None:
        """Put a job before the worker. `devices`: those set aside for it, the worker's own first, if it is to use several."""
        write_whole(self.inbox / job, ",".join(devices).encode())

    def take_back(self, job: str) -> bool:
        """Whether the job was still waiting; it no longer is then."""
        try:
            (self.inbox / job).unlink()
        except FileNotFoundError:
            return False
        return True

    def start(self, data: Path) -> subprocess.Popen[bytes]:
        """A worker of its own session: closing the terminal or the studio does not end it."""
        self.create()
        self.stop.unlink(missing_ok=True)
        source = str(Path(studio.__file__).parents[1])
        path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS if sys.platform == "win32" else 0
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "studio.jobs.worker", str(data), self.device],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Threads that spin while they wait make a step 10 to 20 times slower as soon as a browser wants the cores too.
                env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "STUDIO_NODE": self.node},
                start_new_session=sys.platform != "win32",
                creationflags=flags,
            )


def end(pid: int, started: float, seconds: float = 5.0) -> None:
    """End a worker and what it started; first asked, then forced."""
    if not alive(pid, started):
        return
    processes: list[psutil.Process] = []
    try:
        process = psutil.Process(pid)
        processes = [process, *process.children(recursive=True)]
        process.terminate()
    except psutil.NoSuchProcess:
        return
    _, left = psutil.wait_procs(processes, timeout=seconds)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=seconds)


def start_of(pid: int) -> float:
    """When a process began, as `alive` compares it: seconds since the machine started where the system tells them, since a wall
    clock that is set meanwhile would move every start. Raises psutil.NoSuchProcess.
    """
    if sys.platform != "linux":
        return psutil.Process(pid).create_time()
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(pid) from error
    return int(status.rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


def own_start() -> float:
    """When this process began, as `alive` compares it."""
    return start_of(os.getpid())


def silent(state: WorkerState) -> bool:
    """A living worker that has not said so for a while: stopped from outside, or the machine is starving. Told by repeated looks."""
    return still(state) > SILENT_SECONDS


_beats: dict[tuple[int, float], tuple[float, float]] = {}


def still(state: WorkerState) -> float:
    """Seconds for which a worker's heartbeat has not moved while this process looked; 0 at the first look.

    Never the time between its stamp and now: clocks jump, and those of two machines differ.
    """
    now = time.monotonic()
    beat, since = _beats.get((state.pid, state.started), (None, now))
    if beat != state.beat:
        since = now
        _beats[state.pid, state.started] = (state.beat, now)
    return now - since
