"""Workers on a Ray cluster: every job is an actor of its own that outlives the studio and has its GPUs from Ray.

The studio speaks to the cluster as a Ray client: it takes no part in it, and lives on when the cluster does not. What jobs say
comes through their folders on shared storage, as everywhere.
"""

import logging
import os
import shutil
import socket
import time
from collections.abc import Sequence
from typing import Any

import studio
from studio.errors import RunError
from studio.jobs import processes
from studio.jobs.backends.head import Head
from studio.jobs.devices import Device
from studio.jobs.folder import Claim
from studio.jobs.processes import FAR, HEARTBEAT_SECONDS, WorkerFolder, WorkerState
from studio.library.layout import Layout

NAMESPACE = "lora-studio"
LOOK_SECONDS = 2.0  # between two counts of what the cluster has
AGAIN_SECONDS = 5.0  # between two tries at one that does not answer
CONNECT_SECONDS = 3.0
STARTING_SECONDS = 0.5  # the same while our own one starts
RESTART_SECONDS = 30.0  # before our own one is started again that has ended
SILENCE_SECONDS = 4 * HEARTBEAT_SECONDS  # a worker that Ray has lost sight of may still write to the job's folder for so long
CLIENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_AUTO_CONNECT": "0", "RAY_CLIENT_RECONNECT_GRACE_PERIOD": "10"}
PASSED_ON = ("STUDIO_OFFLINE", "STUDIO_KILL_AT", "HF_HUB_OFFLINE")


class Cluster:
    """Implements Backend for a Ray cluster, this machine's own or one with an address."""

    retries = 3

    def __init__(self, layout: Layout, where: tuple[str, int] | Head) -> None:
        self._layout = layout
        self._where = where
        self._trouble = "not connected to the Ray cluster yet"
        self._next = 0.0
        self._started = -RESTART_SECONDS
        self._gpus: list[int] = []  # of every machine
        self._cpus: list[int] = []
        self._connected = False  # Ray has one connection in a process, which may be an earlier one
        self._running: dict[str, Any] = {}

    def look(self) -> str:
        if time.monotonic() < self._next:
            return self._trouble
        try:
            self._trouble = self._connect()
            if not self._trouble:
                self._count()
        except Exception as error:  # the border to Ray, which raises what its parts raise
            self._lose(error)
        pause = LOOK_SECONDS if not self._trouble else AGAIN_SECONDS if isinstance(self._where, tuple) else STARTING_SECONDS
        self._next = time.monotonic() + pause
        return self._trouble

    def devices(self) -> list[Device]:
        if self._gpus:
            return [Device(f"{FAR}cuda:{i}", "GPU on Ray") for i in range(sum(self._gpus))]
        return [Device(f"{FAR}cpu:{i}", "processor on Ray") for i in range(len(self._cpus))]

    def together(self) -> int:
        return max(self._gpus, default=1)  # of one machine; without GPUs its processors are one device

    def shown(self) -> str:
        name = "a Ray cluster of this machine" if isinstance(self._where, Head) else f"Ray at {self._where[0]}:{self._where[1]}"
        if self._trouble:
            return name
        return f"{name}: {_count(len(self._cpus), 'machine')}, {_count(sum(self._gpus), 'GPU') if self._gpus else 'no GPU'}"

    def check(self) -> str:
        if isinstance(self._where, Head) and self._where.address() is None:
            return "run on a Ray cluster of this machine, which starts with the studio"
        if trouble := self.look():
            raise RunError(trouble)
        return f"run on {self.shown()}"

    def home(self, id: str, segment: int, device: str, node: str) -> WorkerFolder:
        return WorkerFolder(self._layout.workers, f"{FAR}{id}.{segment}", node)

    def worker(self, device: str) -> WorkerState | None:
        return None

    def present(self, home: WorkerFolder) -> bool:
        return self._actor(home) is not None or bool(self._trouble)

    def start(self, home: WorkerFolder, id: str, devices: Sequence[str]) -> None:
        import ray

        from studio.jobs.backends.place import Place

        named: dict[str, Any] = {"name": home.path.name, "namespace": NAMESPACE, "lifetime": "detached", "max_restarts": 0}
        needs = {"num_gpus": len(devices), "num_cpus": 1} if self._gpus else {"num_cpus": min(self._cpus)}
        told = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        around = {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1", **told}}
        try:
            actor: Any = ray.remote(Place).options(**named, **needs, runtime_env=around).remote()
            self._running[home.path.name] = actor.run.remote(str(self._layout.root), home.device, home.node, self._address()[0], studio.__version__)
        except Exception as error:  # the border to Ray
            self._lose(error)

    def vacate(self, device: str) -> None:
        """Nobody stays on a device between jobs here."""

    def why_not(self, home: WorkerFolder) -> str:
        import ray

        asked = self._running.get(home.path.name)
        try:
            if asked is not None:
                ray.get(asked, timeout=1.0)
        except Exception as error:  # told, whatever it is: it is why the worker did not come up
            return f"Ray says: {_reason(error)}"
        return "see the logs of the Ray cluster"

    def alive(self, home: WorkerFolder, claim: Claim) -> bool:
        if not claim.cluster or isinstance(self._where, Head):
            return processes.alive(claim.pid, claim.started)
        there = self._actor(home) is not None
        return there or bool(self._trouble) or not home.quiet(SILENCE_SECONDS)

    def exit_code(self, home: WorkerFolder, claim: Claim | None) -> int | None:
        return None

    def end(self, home: WorkerFolder, claim: Claim | None) -> None:
        import ray

        actor = self._actor(home)
        try:
            if actor is not None:
                ray.kill(actor)
        except Exception as error:  # the border to Ray
            self._lose(error)
        if claim is not None and not claim.cluster:
            processes.end(claim.pid, claim.started)
        self._running.pop(home.path.name, None)
        shutil.rmtree(home.path, ignore_errors=True)  # every stretch of a job has its own

    def release(self, running: bool) -> None:
        self._disconnect()
        if isinstance(self._where, Head) and not running:
            self._where.stop()

    def _address(self) -> tuple[str, int]:
        return (self._where.address() or ("", 0)) if isinstance(self._where, Head) else self._where

    def _connect(self) -> str:
        """Why there is no connection, which may be a matter of seconds; empty if there is one."""
        for name, value in CLIENT.items():
            os.environ.setdefault(name, value)
        if isinstance(self._where, Head) and (waits := self._own(self._where)):
            return waits
        import ray

        if self._connected and ray.is_initialized():
            return ""
        host, port = self._address()
        if not _listens((host, port)):
            return f"nothing answers at {host}:{port}; start the Ray cluster, or set STUDIO_JOBS=local"
        self._disconnect()
        ray.init(f"ray://{host}:{port}", namespace=NAMESPACE, log_to_driver=False)
        self._connected = True
        logging.getLogger("ray").setLevel(logging.ERROR)  # what went wrong is told in a line of our own
        return ""

    def _own(self, head: Head) -> str:
        """Why this machine's own cluster cannot be used yet; starts it where it does not run."""
        head.prepare()
        if head.address() is None:
            self._disconnect()
            if time.monotonic() - self._started < RESTART_SECONDS:
                return f"the Ray cluster of this machine has ended; see {head.log}"
            head.start()
            self._started = time.monotonic()
        return "" if _listens(self._address()) else "the Ray cluster of this machine is starting"

    def _count(self) -> None:
        import ray

        there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._gpus = [int(has["GPU"]) for has in there if has.get("GPU", 0) >= 1]
        self._cpus = [int(has["CPU"]) for has in there if has.get("CPU", 0) >= 1]
        if not self._cpus:
            self._trouble = "the Ray cluster has no machine for jobs now"

    def _actor(self, home: WorkerFolder) -> Any:
        """The actor of that worker; None if there is none, or if that cannot be known now, which is a trouble then."""
        import ray

        if self._trouble:
            return None
        try:
            return ray.get_actor(home.path.name, namespace=NAMESPACE)
        except ValueError:
            return None
        except Exception as error:  # the border to Ray
            self._lose(error)
            return None

    def _lose(self, error: Exception) -> None:
        self._trouble = f"the Ray cluster does not answer: {_reason(error)}"
        self._disconnect()

    def _disconnect(self) -> None:
        import ray

        self._connected = False
        if ray.is_initialized():
            ray.shutdown()


def _listens(where: tuple[str, int]) -> bool:
    try:
        socket.create_connection(where, CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _reason(error: Exception) -> str:
    """The last line of what Ray raised, where it names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
