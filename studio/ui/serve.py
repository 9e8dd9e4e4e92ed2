"""`lora-studio serve`: the studio in the browser, on this machine only."""

import signal
import socket
import sys
import threading
import time
import webbrowser
from typing import TYPE_CHECKING

from studio.errors import InputError
from studio.workspace import Workspace

if TYPE_CHECKING:
    import uvicorn

HOSTS = ("127.0.0.1", "localhost", "::1")
NEXT_PORTS = 20


def serve(workspace: Workspace, host: str = "127.0.0.1", port: int = 7860, open_browser: bool = True) -> None:
    """Run until it is stopped. A taken port gives way to the next free one, said aloud; other machines are not let in."""
    if host not in HOSTS:
        tunnel = f"ssh -L {port}:127.0.0.1:{port}"
        raise InputError(f"host {host!r}: the studio has no login, so it listens on this machine only; reach it from elsewhere through {tunnel}")
    listening = _listen("127.0.0.1" if host == "localhost" else host, port)
    free = listening.getsockname()[1]
    if port and free != port:
        print(f"Port {port} is in use, taking {free}.", file=sys.stderr, flush=True)
    from studio import api, ui

    application = ui.mount(api.app(workspace), workspace)
    address = f"http://{'[::1]' if host == '::1' else host}:{free}"
    import uvicorn

    limits = {"limit_concurrency": 400, "timeout_graceful_shutdown": 2, "ws_max_size": 65536, "ws_per_message_deflate": False, "proxy_headers": False}
    server = uvicorn.Server(uvicorn.Config(application, log_level="warning", access_log=False, **limits))
    _end_in_order(server)
    threading.Thread(target=_announce, args=(server, address, open_browser), daemon=True).start()
    with listening:
        server.run(sockets=[listening])


def _end_in_order(server: "uvicorn.Server") -> None:
    """Being told to end, and a terminal that is closed, end the studio as Ctrl+C does; not the latter if it was started to outlive it (nohup)."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, server.handle_exit)


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket on the first free port from `port` on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, port + NEXT_PORTS if port else 1):
        listening = socket.socket(family, socket.SOCK_STREAM)
        if sys.platform != "win32":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, candidate))
            listening.listen(128)
        except OSError:
            listening.close()
            continue
        return listening
    raise InputError(f"ports {port} to {port + NEXT_PORTS - 1} are all in use; name another one with --port")


def _announce(server: "uvicorn.Server", address: str, open_browser: bool) -> None:
    """Say where the studio is once it answers."""
    while not server.started:
        if server.should_exit:
            return
        time.sleep(0.05)
    print(f"LoRA Studio is at {address}  (Ctrl+C ends it; runs go on by themselves)", file=sys.stderr, flush=True)
    if open_browser:
        webbrowser.open(address)
