"""/api/stream: what happens, as numbered messages. WebSocket for pages, server-sent events for other clients.

First {"kind": "hello", "boot", "seq", "status"}, then {"kind": "event", "job", "event"}, {"kind": "job", "job"}, {"kind": "removed", "job"},
{"kind": "status", "status"}. Who comes back with another boot id, or after too long, hears "hello" again and loads its lists anew.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from studio.api.replies import public
from studio.api.settings import told
from studio.workspace import Workspace

STATUS_SECONDS = 10.0
MAX_LISTENERS = 64


def routes(workspace: Workspace) -> APIRouter:
    router = APIRouter()
    listeners: set[object] = set()

    @router.websocket("/stream")
    async def stream(socket: WebSocket, after: int = 0, boot: str = "") -> None:
        if len(listeners) >= MAX_LISTENERS:
            await socket.close(code=1013)
            return
        await socket.accept()
        mark = object()
        listeners.add(mark)
        sending = asyncio.create_task(_send(workspace, socket, after, boot))
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
            async for message in _messages(workspace, after, boot):
                if await request.is_disconnected():
                    return
                yield f"id: {message.get('seq', 0)}\ndata: {json.dumps(message)}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"cache-control": "no-store"})

    return router


async def _send(workspace: Workspace, socket: WebSocket, after: int, boot: str) -> None:
    try:
        async for message in _messages(workspace, after, boot):
            await socket.send_json(message)
    except (WebSocketDisconnect, RuntimeError):
        return  # the page went away between two messages


async def _messages(workspace: Workspace, after: int, boot: str) -> AsyncIterator[dict[str, Any]]:
    hub = workspace.hub
    seq = after if boot == hub.boot else hub.seq
    yield {"kind": "hello", "boot": hub.boot, "seq": seq, "status": await run_in_threadpool(told, workspace)}
    while True:
        found = await hub.wait(seq, STATUS_SECONDS)
        for message in found:
            seq = message["seq"]
            if message.get("reset"):
                yield {"kind": "hello", "boot": hub.boot, "seq": seq, "status": await run_in_threadpool(told, workspace)}
            else:
                yield shaped(message)
        if not found:
            yield {"kind": "status", "seq": seq, "status": await run_in_threadpool(told, workspace)}


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
