"""Replies that many pages ask for again and again: made once, sent to all, and not sent at all to who has them already."""

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

FRESH_SECONDS = 1.0  # progress may be so old; a job that came, went, moved or changed its state is shown at once
KEYS = 64


@dataclass(frozen=True)
class _Reply:
    version: Hashable
    made: float
    value: Any
    body: str
    etag: str


class Kept:
    """Values by key, made anew when `version` has changed or some time has passed; for one event loop."""

    def __init__(self, version: Callable[[], Hashable], seconds: float = FRESH_SECONDS) -> None:
        self._version = version
        self._seconds = seconds
        self._held: OrderedDict[Hashable, _Reply] = OrderedDict()
        self._making: dict[Hashable, asyncio.Task[_Reply]] = {}

    async def value(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returns, or returned a moment ago."""
        return (await self._get(key, make)).value

    async def reply(self, request: Request, key: Hashable, make: Callable[[], Any]) -> Response:
        """The same as JSON; 304 for a browser that has it."""
        held = await self._get(key, make)
        headers = {"etag": held.etag, "cache-control": "private, no-cache"}
        if request.headers.get("if-none-match") == held.etag:
            return Response(status_code=304, headers=headers)
        return Response(held.body, media_type="application/json", headers=headers)

    async def _get(self, key: Hashable, make: Callable[[], Any]) -> _Reply:
        version = self._version()  # before reading, so that a change meanwhile makes it old
        held = self._held.get(key)
        if held is not None and held.version == version and time.monotonic() - held.made < self._seconds:
            return held
        # Whoever asks while one is being made for the same version waits for that one instead of making another
        at = (key, version, asyncio.get_running_loop())
        if at not in self._making:
            task = asyncio.ensure_future(self._make(key, version, make))
            self._making[at] = task
            task.add_done_callback(lambda _: self._making.pop(at, None))
        return await asyncio.shield(self._making[at])

    async def _make(self, key: Hashable, version: Hashable, make: Callable[[], Any]) -> _Reply:
        made = time.monotonic()
        value, body = await run_in_threadpool(_written, make)
        held = _Reply(version, made, value, body, f'"{blake2b(body.encode(), digest_size=12).hexdigest()}"')
        self._held[key] = held
        self._held.move_to_end(key)
        if len(self._held) > KEYS:
            self._held.popitem(last=False)
        return held


def _written(make: Callable[[], Any]) -> tuple[Any, str]:
    value = make()
    return value, json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
