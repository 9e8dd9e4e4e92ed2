"""/api/images: generated pictures."""

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from studio.api.announce import announcing
from studio.api.replies import public, send_file
from studio.api.undo import Token
from studio.api.uploads import received
from studio.workspace import Workspace


class Pair(BaseModel):
    worse: str = Field(min_length=1, max_length=200, description="the other picture")
    set: str = Field(default="preferences", min_length=1, max_length=190, description="image set that the pair goes into; made if it is new")


def routes(workspace: Workspace) -> APIRouter:
    router = APIRouter(prefix="/images", dependencies=[Depends(announcing(workspace, "images"))])
    gallery = workspace.gallery

    @router.get("")
    def listed(before: str | None = None, limit: int = Query(60, ge=1, le=200), job: str | None = None) -> dict[str, Any]:
        return {"items": [_image(record) for record in gallery.list(before, limit, job)]}

    @router.post("/recall")
    async def recall(request: Request) -> dict[str, Any]:
        """The settings that an uploaded picture carries, and what of it is missing or another one here."""
        async with received(request, workspace.layout.tmp) as files:
            return public(await run_in_threadpool(gallery.recalled, files[0][1]))

    @router.post("/inputs", status_code=201)
    async def keep(request: Request) -> dict[str, Any]:
        """Pictures to start a drawing from; the names that come back are for init_image and mask."""
        async with received(request, workspace.layout.tmp) as files:
            return {"items": [_input(await run_in_threadpool(workspace.inputs.add, path)) for _, path in files]}

    @router.get("/inputs/{name}")
    def kept(name: str) -> FileResponse:
        return send_file(workspace.inputs.path(name), keep=True)

    @router.post("/{id}/input", status_code=201)
    def from_gallery(id: str) -> dict[str, Any]:
        """A picture of the gallery as one to start from."""
        return _input(workspace.inputs.use(gallery.show(id).id))

    @router.post("/restore")
    def restore(body: Token) -> dict[str, Any]:
        return _image(gallery.restore(body.token))

    @router.get("/{id}")
    def show(id: str) -> dict[str, Any]:
        return _image(gallery.show(id))

    @router.get("/{id}/file")
    def file(id: str, save: bool = False) -> FileResponse:
        path = gallery.path(id)
        return send_file(path, name=path.name if save else None, keep=True)

    @router.get("/{id}/thumbnail")
    def thumbnail(id: str, side: int = Query(256, ge=16, le=1024)) -> FileResponse:
        return send_file(gallery.thumbnail(id, side), keep=True)

    @router.get("/{id}/recall")
    def settings(id: str) -> dict[str, Any]:
        return public(gallery.recalled(gallery.show(id).id))

    @router.post("/{id}/better", status_code=201)
    def better(id: str, body: Pair) -> dict[str, Any]:
        """A pair for preference training: this picture is better than the other."""
        return public(workspace.pairs.add(id, body.worse, body.set))

    @router.delete("/{id}")
    def remove(id: str) -> dict[str, Any]:
        return {"token": gallery.remove(id)}

    return router


def _input(record: Any) -> dict[str, Any]:
    return {**public(record), "url": f"/api/images/inputs/{quote(record.name, safe='')}"}


def _image(record: Any) -> dict[str, Any]:
    address = f"/api/images/{quote(record.id, safe='')}"
    return {**public(record), "url": f"{address}/file", "thumbnail": f"{address}/thumbnail"}
