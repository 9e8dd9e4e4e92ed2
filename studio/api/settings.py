"""/api/status and /api/settings: what the studio is doing, and every setting it knows."""

from typing import Any, Literal

from fastapi import APIRouter, Request, Response

from studio.api.kept import Kept
from studio.api.replies import public
from studio.config import GenerateConfig, Settings, TrainConfig
from studio.workspace import Workspace

KINDS: dict[str, type[Settings]] = {"train": TrainConfig, "generate": GenerateConfig}


def routes(workspace: Workspace) -> APIRouter:
    router = APIRouter()

    kept = Kept(lambda: workspace.version)

    @router.get("/status")
    async def status(request: Request) -> Response:
        return await kept.reply(request, "status", lambda: told(workspace))

    @router.get("/settings/{kind}")
    def schema(kind: Literal["train", "generate"]) -> dict[str, Any]:
        """JSON Schema of what POST /api/jobs/{kind} takes."""
        return KINDS[kind].model_json_schema()

    return router


def told(workspace: Workspace) -> dict[str, Any]:
    """The status, without where on the disk it is."""
    values = public(workspace.status())
    values.pop("data", None)
    return values
