"""/api/bases: base models that can be trained on and drawn with."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from studio.api.announce import announcing
from studio.api.replies import public
from studio.api.undo import Token
from studio.workspace import Workspace


class NewBase(BaseModel):
    name: str = Field(min_length=1, max_length=100)
    path: str = Field(min_length=1, max_length=4096, description="a diffusers folder or a .safetensors file on this machine")
    vae: str | None = Field(default=None, max_length=4096)
    encoders: str | None = Field(default=None, max_length=4096)


def routes(workspace: Workspace) -> APIRouter:
    router = APIRouter(prefix="/bases", dependencies=[Depends(announcing(workspace, "bases"))])
    bases = workspace.bases

    @router.get("")
    def listed() -> dict[str, Any]:
        return {"items": public(bases.list())}

    @router.post("", status_code=201)
    def add(body: NewBase) -> dict[str, Any]:
        return public(bases.add(body.name, Path(body.path), body.vae or None, body.encoders or None))

    @router.post("/restore")
    def restore(body: Token) -> dict[str, Any]:
        return public(bases.restore(body.token))

    @router.delete("/{name}")
    def remove(name: str) -> dict[str, Any]:
        return {"token": bases.remove(name)}

    return router
