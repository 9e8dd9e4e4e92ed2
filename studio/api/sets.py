"""/api/sets: image sets, their pictures and captions."""

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


class NewSet(BaseModel):
    name: str = Field(min_length=1, max_length=200)
    trigger: str = Field(default="", max_length=200)


class SetChange(BaseModel):
    name: str | None = Field(default=None, min_length=1, max_length=200)
    trigger: str | None = Field(default=None, max_length=200)


class Caption(BaseModel):
    caption: str = Field(max_length=100_000)


def routes(workspace: Workspace) -> APIRouter:
    router = APIRouter(prefix="/sets", dependencies=[Depends(announcing(workspace, "sets"))])
    _whole(router, workspace)
    _pictures(router, workspace)
    return router


def _whole(router: APIRouter, workspace: Workspace) -> None:
    sets = workspace.sets

    @router.get("")
    def all_sets() -> dict[str, Any]:
        return {"items": [_set(record) for record in sets.list()]}

    @router.post("", status_code=201)
    def create(body: NewSet) -> dict[str, Any]:
        return _set(sets.create(body.name, body.trigger))

    @router.post("/restore")
    def restore(body: Token) -> dict[str, Any]:
        return _set(sets.restore(body.token))

    @router.get("/{id}")
    def show(id: str) -> dict[str, Any]:
        detail = sets.show(id)
        return {**_set(detail), "pictures": [_picture(detail.id, item) for item in detail.items]}

    @router.patch("/{id}")
    def edit(id: str, body: SetChange) -> dict[str, Any]:
        return _set(sets.edit(id, body.name, body.trigger))

    @router.delete("/{id}")
    def remove(id: str) -> dict[str, Any]:
        return {"token": sets.remove(id)}


def _pictures(router: APIRouter, workspace: Workspace) -> None:
    sets = workspace.sets

    @router.post("/{id}/pictures")
    async def add(id: str, request: Request) -> dict[str, Any]:
        async with received(request, workspace.layout.tmp) as files:
            report = await run_in_threadpool(sets.add_files, id, files)
        return {"accepted": len(report.accepted), "rejected": public(report.rejected), "skipped": len(report.skipped), "set": public(report.set)}

    @router.get("/{id}/pictures/{picture}")
    def file(id: str, picture: str) -> FileResponse:
        return send_file(sets.picture_path(id, picture))

    @router.get("/{id}/pictures/{picture}/thumbnail")
    def thumbnail(id: str, picture: str, side: int = Query(256, ge=16, le=1024)) -> FileResponse:
        return send_file(sets.thumbnail(id, picture, side))

    @router.patch("/{id}/pictures/{picture}")
    def caption(id: str, picture: str, body: Caption) -> dict[str, Any]:
        sets.set_caption(id, picture, body.caption)
        return {"caption": body.caption.strip()}

    @router.delete("/{id}/pictures/{picture}")
    def remove_picture(id: str, picture: str) -> dict[str, Any]:
        return {"token": sets.remove_picture(id, picture)}


def _address(id: str, picture: str) -> str:
    return f"/api/sets/{quote(id, safe='')}/pictures/{quote(picture, safe='')}"


def _set(record: Any) -> dict[str, Any]:
    values = public(record)
    values.pop("items", None)
    return {**values, "name": record.name, "cover": f"{_address(record.id, record.cover)}/thumbnail" if record.cover else ""}


def _picture(id: str, item: Any) -> dict[str, Any]:
    address = _address(id, item.name)
    return {**item.model_dump(), "url": address, "thumbnail": f"{address}/thumbnail"}
