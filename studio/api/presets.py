"""/api/presets and /api/wildcards: what prompts are made of."""

from typing import Any

from fastapi import APIRouter

from studio.api.replies import public
from studio.config import build
from studio.config.generating.presets import Preset
from studio.workspace import Workspace


def routes(workspace: Workspace) -> APIRouter:
    router = APIRouter()
    presets = workspace.presets

    @router.get("/presets")
    def listed() -> dict[str, Any]:
        return {"items": [preset.model_dump(mode="json") for preset in presets.list()]}

    @router.put("/presets/{name}")
    def save(name: str, body: dict[str, Any]) -> dict[str, Any]:
        """Keep words and settings under a name."""
        return presets.save(build(Preset, {**body, "name": name})).model_dump(mode="json")

    @router.delete("/presets/{name}")
    def remove(name: str) -> dict[str, Any]:
        """Forget one; the reply can be saved again."""
        return presets.remove(name).model_dump(mode="json")

    @router.get("/wildcards")
    def wildcards() -> dict[str, Any]:
        """Names that prompts may hold between __ and __."""
        return {"items": public(workspace.inputs.wildcard_names())}

    return router
