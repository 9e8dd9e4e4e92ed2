"""A Ray cluster of this machine alone, started by Ray's own command. It outlives the studio, as workers do, and the next one finds it.

It listens on 127.0.0.1 only, wants a token that only the owner of the data folder can read, and has neither dashboard nor usage
statistics. `ray.json` and `ray.log` lie in workers/.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

import studio
from studio.jobs.devices import devices
from studio.jobs.processes import alive, end, start_of
from studio.library.files import write_whole
from studio.library.layout import Layout

HOST = "127.0.0.1"
STORE_BYTES = 80_000_000  # Ray's smallest: jobs exchange files, not objects
AROUND = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listen on 127.0.0.1 alone, as Ray does where it expects no second machine
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "TIMEOUT_FOR_SPECIFIC_SERVER_S": "120",  # a busy machine takes longer than the usual 30 to answer a client
}


class Head:
    """The cluster's first and only machine."""

    def __init__(self, layout: Layout) -> None:
        self._file = layout.workers / "ray.json"
        self._token = layout.workers / "ray.token"
        self.log = layout.workers / "ray.log"
        self._process: subprocess.Popen[bytes] | None = None

    def address(self) -> tuple[str, int] | None:
        """Host and port for clients, if it runs; not before it listens."""
        known = self._known()
        return (HOST, known["port"]) if known else None

    def prepare(self) -> None:
        """Let this process and what it starts know the token. Before Ray is imported."""
        if not self._token.is_file():
            write_whole(self._token, secrets.token_hex(32).encode())
            self._token.chmod(0o600)
        os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._token)})

    def start(self) -> None:
        """Begin to start it; it is there when something listens at `address`."""
        self.prepare()
        port, inner = _free_ports()
        source = str(Path(studio.__file__).parents[1])
        path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--node-ip-address={HOST}", f"--port={inner}"]
        command += [f"--ray-client-server-port={port}", "--include-dashboard=false", "--disable-usage-stats", "--include-log-monitor=false"]
        command += [f"--object-store-memory={STORE_BYTES}"]
        if os.environ.get("STUDIO_DEVICE", "").strip() and not any(device.name.startswith("cuda") for device in devices()):
            command.append("--num-gpus=0")
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **AROUND, "PYTHONPATH": path}, start_new_session=True
            )
        write_whole(self._file, json.dumps({"pid": self._process.pid, "started": start_of(self._process.pid), "port": port}).encode())

    def stop(self) -> None:
        """End it, with everything that runs on it."""
        known = self._known()
        if known:
            end(known["pid"], known["started"], seconds=15.0)
            if self._process is not None:
                self._process.poll()
        self._file.unlink(missing_ok=True)

    def _known(self) -> dict[str, int] | None:
        try:
            known = json.loads(self._file.read_bytes())
        except FileNotFoundError:
            return None
        return known if alive(known["pid"], known["started"]) else None


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind((HOST, 0))
        two.bind((HOST, 0))
        return int(one.getsockname()[1]), int(two.getsockname()[1])
