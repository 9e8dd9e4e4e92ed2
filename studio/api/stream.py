"""/api/stream: what happens, as numbered messages. WebSocket for pages, server-sent events for other clients.

First {"kind": "hello", "boot", "seq", "status"}, then {"kind": "event", "job", "event"}, {"kind": "job", "job"}, {"kind": "removed", "job"},
{"kind": "status", "status"}. Who comes back with another boot id, or after too long, hears "hello" again and loads its lists anew.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

from studio.api.kept import Kept
from studio.api.replies import public
from studio.api.settings import told
from studio.workspace import Workspace
from studio.workspace.hub import Hub

STATUS_SECONDS = 5.0
MAX_LISTENERS = 256


def routes(workspace: Workspace) -> APIRouter:
    router = APIRouter()
    listeners: set[object] = set()
    kept = Kept(lambda: workspace.version)

    async def messages(after: int, boot: str) -> AsyncIterator[tuple[int, str]]:
        async for seq, text in _messages(workspace.hub, lambda: kept.value("status", lambda: told(workspace)), after, boot):
            yield seq, text

    @router.websocket("/stream")
    async def stream(socket: WebSocket, after: int = 0, boot: str = "") -> None:
        if len(listeners) >= MAX_LISTENERS:
            await socket.close(code=1013)
            return
        await socket.accept()
        mark = object()
        listeners.add(mark)
        sending = asyncio.create_task(_send(socket, messages(after, boot)))
        try:
            while True:
                await socket.receive_text()
        except WebSocketDisconnect:
            pass
        finally:
            listeners.discard(mark)
            sending.cancel()

    @router.get("/stream")
    async def stream_events(request: Request, after: int = 0, boot: str = "") -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            async for seq, text in messages(after, boot):
                if await request.is_disconnected():
                    return
                yield f"id: {seq}\ndata: {text}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"cache-control": "no-store"})

    return router


async def _send(socket: WebSocket, messages: AsyncIterator[tuple[int, str]]) -> None:
    try:
        async for _, text in messages:
            await socket.send_text(text)
    except (WebSocketDisconnect, RuntimeError):
        return  # the page went away between two messages


async def _messages(hub: Hub, status: Callable[[], Awaitable[Any]], after: int, boot: str) -> AsyncIterator[tuple[int, str]]:
    """Number and JSON of every message; what many hear is written once."""
    seq = after if boot == hub.boot else hub.seq
    yield seq, json.dumps({"kind": "hello", "boot": hub.boot, "seq": seq, "status": await status()})
    due = time.monotonic() + STATUS_SECONDS
    while True:
        found = await hub.wait(seq, max(0.0, due - time.monotonic()))
        for message in found:
            seq = message["seq"]
            if message.get("reset"):
                yield seq, json.dumps({"kind": "hello", "boot": hub.boot, "seq": seq, "status": await status()})
            else:
                yield seq, written(message)
        if time.monotonic() >= due:
            due = time.monotonic() + STATUS_SECONDS
            yield seq, json.dumps({"kind": "status", "seq": seq, "status": await status()})


def written(message: dict[str, Any]) -> str:
    """A message of the hub as JSON, kept with it for the next listener."""
    if "text" not in message:
        message["text"] = json.dumps(shaped(message))
    return message["text"]


def shaped(message: dict[str, Any]) -> dict[str, Any]:
    """A message of the hub as pages take it."""
    seq, job = message["seq"], message["job"]
    if "event" in message:
        return {"kind": "event", "seq": seq, "job": job, "event": public(message["event"])}
    if "changed" in message:
        return {"kind": "changed", "seq": seq, "what": message["changed"]}
    if message.get("row") is None:
        return {"kind": "removed", "seq": seq, "job": job}
    return {"kind": "job", "seq": seq, "job": public(message["row"])}
