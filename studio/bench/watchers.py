"""What a hundred pages that watch cost a training: its steps with and without them, alternating in one run.

    python -m studio.bench.watchers --watchers 100 --how poll stream --pairs 20 --phase 6

A studio of its own is started on a new data folder and trains a LoRA on a demo base; watchers come and go every `phase` seconds.
A poller asks for the status and for the list of jobs in turn, one question every two seconds over a connection that it keeps, and
says what it has already, as a browser does; a stream is an open WebSocket. Steps are compared within neighbouring phases, so that
whatever else the machine does meanwhile weighs on both sides.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import psutil

How = Literal["poll", "stream"]
ASK_SECONDS = 2.0
SETTLE_SECONDS = 1.0  # at the start of a phase, not counted
QUESTIONS = ("/api/status", "/api/jobs")


@dataclass
class Heard:
    """What the watchers saw: seconds of every answer, messages, errors."""

    seconds: list[float] = field(default_factory=list)
    messages: int = 0
    errors: int = 0


@contextlib.contextmanager
def studio(data: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A served studio: its address and process."""
    command = [sys.executable, "-m", "studio", "serve", "--data", str(data), "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            found = next((match for line in process.stderr if (match := re.search(r"http://\S+", line))), None)
            if found is None:
                raise SystemExit("the studio did not start")
            yield found.group(), psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(30)


def ask(address: str, path: str, **body: Any) -> dict[str, Any]:
    content = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"{address}/api{path}", content, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


async def poll(address: str, number: int, heard: Heard) -> None:
    """Ask every two seconds until cancelled."""
    host = urlsplit(address).netloc
    name, _, port = host.rpartition(":")
    tags: dict[str, str] = {}
    await asyncio.sleep(ASK_SECONDS * (number % 100) / 100)
    reader, writer = await asyncio.open_connection(name, int(port))
    try:
        for path in itertools.cycle(QUESTIONS):
            began = time.monotonic()
            tag = f"If-None-Match: {tags[path]}\r\n" if path in tags else ""
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{tag}\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            await reader.readexactly(int(fields.get("content-length", 0)))
            heard.errors += head.split()[1] not in ("200", "304")
            heard.seconds.append(time.monotonic() - began)
            tags[path] = fields.get("etag", "")
            await asyncio.sleep(max(0.0, ASK_SECONDS - (time.monotonic() - began)))
    except (OSError, asyncio.IncompleteReadError):
        heard.errors += 1
    finally:
        writer.close()


async def listen(address: str, number: int, heard: Heard) -> None:
    """Hear the stream until cancelled."""
    import websockets

    await asyncio.sleep(0.5 * (number % 100) / 100)
    try:
        async with websockets.connect(f"ws://{urlsplit(address).netloc}/api/stream", compression=None, max_size=None) as socket:
            async for _ in socket:
                heard.messages += 1
    except (OSError, websockets.WebSocketException):
        heard.errors += 1


@dataclass
class Phase:
    """With or without watchers, from `began` to `ended` in Unix seconds; `cpu`: seconds of a core that the server used meanwhile."""

    watched: bool
    began: float
    ended: float = 0.0
    cpu: float = 0.0

    def share(self) -> float:
        """Of one core."""
        return self.cpu / (self.ended - self.began)


async def phases(address: str, server: psutil.Process, how: How, options: argparse.Namespace, heard: Heard) -> list[Phase]:
    """Let watchers come and go."""
    done = []
    watch = poll if how == "poll" else listen
    for there in [False, True] * options.pairs:
        tasks = [asyncio.create_task(watch(address, number, heard)) for number in range(options.watchers if there else 0)]
        await asyncio.sleep(SETTLE_SECONDS)
        phase, before = Phase(there, time.time()), _cpu(server)
        await asyncio.sleep(options.phase)
        phase.ended, phase.cpu = time.time(), _cpu(server) - before
        done.append(phase)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return done


def _cpu(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


def compared(steps: Sequence[tuple[float, float]], done: Sequence[Phase]) -> list[float]:
    """Median seconds of a step with watchers over that without, for every pair of neighbouring phases. steps: (end, seconds)."""
    inside = [[seconds for end, seconds in steps if phase.began <= end - seconds and end <= phase.ended] for phase in done]
    return [statistics.median(on) / statistics.median(off) for off, on in zip(inside[::2], inside[1::2], strict=True) if on and off]


def measure(data: Path, address: str, server: psutil.Process, id: str, how: How, options: argparse.Namespace) -> dict[str, Any]:
    heard = Heard()
    began, own = time.monotonic(), time.process_time()
    done = asyncio.run(phases(address, server, how, options, heard))
    own_share = (time.process_time() - own) / (time.monotonic() - began)
    told = [json.loads(line) for line in (data / "jobs" / id / "events.jsonl").read_text().splitlines()]
    steps = [(event["time"], event["seconds"]) for event in told if event["kind"] == "step"]
    ratios = sorted(compared(steps, done))
    quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    found: dict[str, Any] = {"how": how, "watchers": options.watchers, "pairs": len(ratios), "errors": heard.errors}
    found |= {"slower": round(quarters[1] - 1, 4), "quartiles": [round(quarters[0] - 1, 4), round(quarters[2] - 1, 4)]}
    cpu = {watched: statistics.fmean(phase.share() for phase in done if phase.watched == watched) for watched in (False, True)}
    found |= {"server_cpu": round(cpu[False], 3), "server_cpu_watched": round(cpu[True], 3), "own_cpu": round(own_share, 3)}
    if heard.seconds:
        cuts = statistics.quantiles(heard.seconds, n=100)
        found |= {"answers": len(heard.seconds), "p50_ms": round(1e3 * cuts[49], 1), "p95_ms": round(1e3 * cuts[94], 1), "p99_ms": round(1e3 * cuts[98], 1)}
    return found | ({"messages": heard.messages} if heard.messages else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--watchers", type=int, default=100)
    parser.add_argument("--how", nargs="+", choices=("poll", "stream"), default=["poll", "stream"])
    parser.add_argument("--pairs", type=int, default=20, help="phases without and with watchers")
    parser.add_argument("--phase", type=float, default=6.0, help="seconds of a phase")
    parser.add_argument("--resolution", type=int, default=128)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # told to end, it still ends the studio and the run that it started
    print(json.dumps({"machine": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None}))
    with tempfile.TemporaryDirectory() as folder, studio(Path(folder)) as (address, server):
        settings = {"images": "blueprint", "base": "demo-sdxl", "name": "watched", "steps": 1_000_000, "save_every": 0, "resolution": options.resolution}
        id = ask(address, "/jobs/train", **settings)["id"]
        try:
            while ask(address, f"/jobs/{id}")["step"] < 10:
                time.sleep(0.5)
            for how in options.how:
                print(json.dumps(measure(Path(folder), address, server, id, how, options)), flush=True)
        finally:
            ask(address, f"/jobs/{id}/cancel", really=True)
            while ask(address, f"/jobs/{id}")["state"] == "running":
                time.sleep(0.5)


if __name__ == "__main__":
    main()
