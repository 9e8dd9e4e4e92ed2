"""/api/adapters: the LoRAs of the library."""

from pathlib import Path
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
from studio.config import BaseChoice, safe_stem
from studio.errors import FormatError, StudioError
from studio.workspace import Workspace
from studio.workspace.library import cards


class NewName(BaseModel):
    name: str = Field(min_length=1, max_length=100)


class Entries(BaseModel):
    entries: dict[str, str | None] = Field(min_length=1, max_length=200)


def routes(workspace: Workspace) -> APIRouter:
    router = APIRouter(prefix="/adapters", dependencies=[Depends(announcing(workspace, "adapters"))])
    _incoming(router, workspace)
    _listed(router, workspace)
    return router


def _incoming(router: APIRouter, workspace: Workspace) -> None:
    library = workspace.library

    @router.post("")
    async def add(request: Request) -> dict[str, Any]:
        """Take .safetensors files in, with what side files of the same names say of them; each is told for itself."""
        added, rejected = [], []
        async with received(request, workspace.layout.tmp) as files:
            told, loras = cards(files)
            for name, path in loras:
                try:
                    stem = name.removesuffix(".safetensors")
                    added.append(_adapter(await run_in_threadpool(library.add, path, safe_stem(stem), told.get(stem))))
                except StudioError as error:
                    rejected.append({"name": name, "message": str(error).replace(path.name, name)})
        return {"accepted": len(added), "items": added, "rejected": public(rejected), "skipped": 0}

    @router.post("/inspect")
    async def inspect(request: Request) -> dict[str, Any]:
        """What a file is, who loads it and which bases it fits; the file is not kept."""
        async with received(request, workspace.layout.tmp) as files:
            name, path = files[0]
            try:
                found = await run_in_threadpool(_fitted, workspace, path)
            except FormatError as error:
                raise FormatError(str(error).replace(str(path), name).replace(path.name, name)) from None
            return {**found, "file": name}

    @router.post("/restore")
    def restore(body: Token) -> dict[str, Any]:
        return _adapter(library.restore(body.token))


def _listed(router: APIRouter, workspace: Workspace) -> None:
    library = workspace.library

    @router.get("")
    def listed(q: str = Query("", max_length=300), family: str = "", before: str | None = None, limit: int = Query(100, ge=1, le=500)) -> dict[str, Any]:
        return {"items": [_adapter(record) for record in library.list(q, family, before, limit)]}

    @router.get("/{id}")
    def show(id: str) -> dict[str, Any]:
        return _adapter(library.show(id))

    @router.get("/{id}/inspect")
    def details(id: str) -> dict[str, Any]:
        return _inspected(workspace, library.path(id))

    @router.get("/{id}/preview")
    def preview(id: str) -> FileResponse:
        return send_file(library.preview(id))

    @router.get("/{id}/file")
    def file(id: str) -> FileResponse:
        path = library.path(id)
        return send_file(path, name=path.name)

    @router.patch("/{id}/metadata")
    def edit(id: str, body: Entries) -> dict[str, Any]:
        """Change what the file says of itself; an empty value takes an entry out."""
        return public({"metadata": library.edit(library.show(id).id, body.entries)})

    @router.patch("/{id}")
    def rename(id: str, body: NewName) -> dict[str, Any]:
        return _adapter(library.rename(id, body.name))

    @router.delete("/{id}")
    def remove(id: str) -> dict[str, Any]:
        return {"token": library.remove(id)}


def _inspected(workspace: Workspace, path: Path) -> dict[str, Any]:
    return public(workspace.library.inspect(path))


def _fitted(workspace: Workspace, path: Path) -> dict[str, Any]:
    """The same, and for every base model of this machine whether it fits."""
    bases = [workspace.bases.resolve(BaseChoice(base=base.name)) for base in workspace.bases.list() if not base.problem]
    return {**_inspected(workspace, path), "fits": public([workspace.library.fit(path, base) for base in bases])}


def _adapter(record: Any) -> dict[str, Any]:
    address = f"/api/adapters/{quote(record.id, safe='')}"
    return {**public(record), "name": record.name, "preview": f"{address}/preview" if record.preview else "", "file": f"{address}/file"}
