"""Numbered messages for everybody who watches: pages over WebSocket, in this process.

A message is {"seq", "job", "event": {...}} or {"seq", "job", "row": {...}}; `row` is None for a job that was removed. Numbers
start anew with each process, which its boot id tells. Who asks for numbers that are gone gets {"seq", "reset": true} first and should load its lists again.
"""

import asyncio
import secrets
import threading
from collections import deque
from typing import Any

KEEP = 5000
STANDING = ("state", "priority", "queued", "segment", "cancelling", "name")


class Hub:
    """Keeps the last messages; safe to use from any thread."""

    def __init__(self, keep: int = KEEP) -> None:
        self.boot = secrets.token_hex(8)
        self._messages: deque[dict[str, Any]] = deque(maxlen=keep)
        self._seq = 0
        self._turns = 0
        self._standing: dict[str, tuple[Any, ...]] = {}
        self._changed = threading.Condition()
        self._waiters: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    @property
    def seq(self) -> int:
        """Number of the newest message."""
        return self._seq

    @property
    def turns(self) -> int:
        """Counts what changes a list of jobs beyond progress: one came, went, moved, or is in another state."""
        return self._turns

    def publish(self, job: str, **content: Any) -> None:
        with self._changed:
            self._seq += 1
            if "row" in content:
                row = content["row"] or {}
                standing = tuple(row.get(name) for name in STANDING)
                self._turns += self._standing.get(job) != standing
                self._standing[job] = standing
            self._messages.append({"seq": self._seq, "job": job, **content})
            self._changed.notify_all()
            waiters = list(self._waiters)
        for loop, waiter in waiters:
            if not loop.is_closed():
                loop.call_soon_threadsafe(waiter.set)

    def since(self, seq: int, timeout: float = 0.0) -> list[dict[str, Any]]:
        """Messages after that number; waits up to `timeout` seconds for the first."""
        with self._changed:
            self._changed.wait_for(lambda: self._seq != seq, timeout)
            return self._after(seq)

    async def wait(self, seq: int, timeout: float = 30.0) -> list[dict[str, Any]]:
        """The same for asyncio; no thread waits meanwhile."""
        waiter = asyncio.Event()
        entry = (asyncio.get_running_loop(), waiter)
        with self._changed:
            self._waiters.add(entry)
            found = self._after(seq)
        try:
            if not found:
                async with asyncio.timeout(timeout):
                    await waiter.wait()
        except TimeoutError:
            return []
        finally:
            with self._changed:
                self._waiters.discard(entry)
        with self._changed:
            return found or self._after(seq)

    def _after(self, seq: int) -> list[dict[str, Any]]:
        if seq == self._seq:
            return []
        oldest = self._messages[0]["seq"] if self._messages else 1
        if seq > self._seq or seq < oldest - 1:
            return [{"seq": self._seq, "job": "", "reset": True}]
        return [message for message in self._messages if message["seq"] > seq]
