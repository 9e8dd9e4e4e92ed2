"""Where workers run: processes of this machine, or a Ray cluster. STUDIO_JOBS says which; the queue is the same for both."""

import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from typing import Protocol

from studio.errors import SettingsError
from studio.jobs.backends.local import Local
from studio.jobs.devices import Device
from studio.jobs.folder import Claim
from studio.jobs.processes import WorkerFolder, WorkerState
from studio.library.layout import Layout

_ADDRESS = re.compile(r"ray://([^\s/:]+|\[[0-9A-Fa-f:]+\]):(\d{1,5})/?")


class Backend(Protocol):
    """Starts, watches and ends workers. A job reaches its worker through a WorkerFolder, wherever that runs."""

    retries: int  # times that a job whose worker died is begun again without being asked

    def look(self) -> str:
        """Why no job can be handed out now, in a sentence; empty if one can."""
        ...

    def devices(self) -> list[Device]:
        """What one job each can be given to, as of the last look."""
        ...

    def together(self) -> int:
        """How many of them one job can have."""
        ...

    def shown(self) -> str:
        """What is in use, for people."""
        ...

    def check(self) -> str:
        """The same after a try. Raises RunError if it cannot be reached."""
        ...

    def home(self, id: str, segment: int, device: str, node: str) -> WorkerFolder:
        """The folder through which that stretch of a job reaches its worker."""
        ...

    def worker(self, device: str) -> WorkerState | None:
        """The worker that stays on a device between jobs, if there is one."""
        ...

    def present(self, home: WorkerFolder) -> bool:
        """Whether a worker for that folder lives or is about to."""
        ...

    def start(self, home: WorkerFolder, id: str, devices: Sequence[str]) -> None:
        """Bring one up. Whether that worked is seen when it takes the job."""
        ...

    def vacate(self, device: str) -> None:
        """Have an idle worker give up a device that another one is to use."""
        ...

    def why_not(self, home: WorkerFolder) -> str:
        """What to do about a worker that does not come up."""
        ...

    def alive(self, home: WorkerFolder, claim: Claim) -> bool:
        """Whether the worker that claimed a job is still there; true as long as nobody can know."""
        ...

    def exit_code(self, home: WorkerFolder, claim: Claim | None) -> int | None:
        """How a worker ended, where that is known."""
        ...

    def end(self, home: WorkerFolder, claim: Claim | None) -> None:
        """End a worker that does not end itself or is not needed any more, and put away what is left of one that died."""
        ...

    def release(self, running: bool) -> None:
        """Nobody hands out jobs from here any more. `running`: some still run, and go on."""
        ...


def chosen(layout: Layout, devices: Callable[[], list[Device]], node: str) -> Backend:
    """The backend that STUDIO_JOBS names. Raises SettingsError for a value that is none, or if Ray is not installed."""
    wish = os.environ.get("STUDIO_JOBS", "").strip()
    if wish in ("", "local"):
        return Local(layout, devices, node)
    address = _ADDRESS.fullmatch(wish)
    if wish != "ray" and not address:
        raise SettingsError(
            f"STUDIO_JOBS {wish!r}: use local, ray (a cluster of this machine alone), or ray://HOST:PORT with a cluster's client port, usually 10001"
        )
    if importlib.util.find_spec("ray") is None:
        raise SettingsError(f"STUDIO_JOBS={wish} needs the package ray; pip install 'lora-studio[ray]', or set STUDIO_JOBS=local")
    from studio.jobs.backends.cluster import Cluster
    from studio.jobs.backends.head import Head

    return Cluster(layout, (address[1].strip("[]"), int(address[2])) if address else Head(layout))
