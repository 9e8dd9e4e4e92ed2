"""/api/tools: merge, resize, probe, extract, bake and check as jobs."""

from typing import Any, Literal

from fastapi import APIRouter

from studio.api.jobs import exports
from studio.api.replies import public
from studio.config import safe_stem
from studio.errors import SettingsError
from studio.workspace import Workspace

MADE_HERE = "setting 'output' is for the command line; here the result joins the library, and a checkpoint is offered for download"


def routes(workspace: Workspace) -> APIRouter:
    router = APIRouter(prefix="/tools")

    @router.post("/compare")
    def compare(body: dict[str, Any]) -> dict[str, Any]:
        """What `check` finds, at once and without a job."""
        return public(workspace.tools.compare(body))

    @router.post("/{kind}", status_code=201)
    def run(kind: Literal["merge", "resize", "probe", "extract", "bake", "check"], body: dict[str, Any]) -> dict[str, Any]:
        """Submit a tool; the body holds its settings. `bake` takes a `name`; its file is then at /api/jobs/{id}/export.

        What `check` finds is the result of its job.
        """
        if "output" in body:
            raise SettingsError(MADE_HERE)
        if kind == "bake":
            name = safe_stem(str(body.pop("name", "") or "checkpoint"))
            exports(workspace).mkdir(exist_ok=True)
            body = {**body, "output": str(exports(workspace) / f"{name}.safetensors")}
        return public(workspace.tools.run(kind, body))

    return router
