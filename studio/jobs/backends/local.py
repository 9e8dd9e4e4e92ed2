"""Workers as processes of this machine, one for each device; they stay a while between jobs."""

import subprocess
from collections.abc import Callable, Sequence

import studio
from studio.jobs.devices import Device
from studio.jobs.folder import Claim
from studio.jobs.processes import SILENT_SECONDS, WorkerFolder, WorkerState, alive, end
from studio.library.layout import Layout


class Local:
    """Implements Backend for this machine's devices."""

    retries = 0  # whoever sits at this machine decides whether a run that memory has killed goes on

    def __init__(self, layout: Layout, devices: Callable[[], list[Device]], node: str) -> None:
        self._layout = layout
        self._node = node
        self._devices = devices
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def look(self) -> str:
        return ""

    def devices(self) -> list[Device]:
        return self._devices()

    def together(self) -> int:
        return len(self.devices())

    def shown(self) -> str:
        return "this machine"

    def check(self) -> str:
        return f"run on this machine: {', '.join(f'{device.name} ({device.title})' for device in self.devices())}"

    def home(self, id: str, segment: int, device: str, node: str) -> WorkerFolder:
        return WorkerFolder(self._layout.workers, device, node)

    def worker(self, device: str) -> WorkerState | None:
        return self._home(device).state()

    def present(self, home: WorkerFolder) -> bool:
        starting = self._started.get(home.device)
        state = home.state()
        if state is not None and state.version != studio.__version__ and not state.job:
            end(state.pid, state.started)  # started before an update of the program
            return False
        if state is None and (starting is None or starting.poll() is not None):
            return False
        home.stop.unlink(missing_ok=True)
        return True

    def start(self, home: WorkerFolder, id: str, devices: Sequence[str]) -> None:
        self._started[home.device] = home.start(self._layout.root)

    def vacate(self, device: str) -> None:
        home = self._home(device)
        if home.state() is not None:
            home.stop.touch()

    def why_not(self, home: WorkerFolder) -> str:
        return f"see {home.log}, or run doctor"

    def alive(self, home: WorkerFolder, claim: Claim) -> bool:
        if claim.cluster:  # taken there before the studio was told to use this machine
            return not home.quiet(SILENT_SECONDS)
        return alive(claim.pid, claim.started)

    def exit_code(self, home: WorkerFolder, claim: Claim | None) -> int | None:
        process = self._started.get(home.device)
        return process.poll() if process is not None and claim is not None and process.pid == claim.pid else None

    def end(self, home: WorkerFolder, claim: Claim | None) -> None:
        if claim is not None and not claim.cluster:
            end(claim.pid, claim.started)

    def release(self, running: bool) -> None:
        """Idle workers are asked to end; busy ones finish their job first."""
        for device in self.devices():
            self.vacate(device.name)

    def _home(self, device: str) -> WorkerFolder:
        return WorkerFolder(self._layout.workers, device, self._node)
