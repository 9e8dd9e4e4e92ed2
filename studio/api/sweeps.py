"""/api/sweeps and /api/recipes: several trainings beside each other, and one beside a starting point."""

import dataclasses
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from studio.api.jobs import no_output
from studio.api.replies import public, send_file
from studio.config import TrainConfig, build
from studio.config.recipes import differences, find, recipes
from studio.workspace import Workspace


class Sweep(BaseModel):
    settings: dict[str, Any] = Field(description="as POST /api/jobs/train takes them")
    over: list[str] = Field(min_length=1, max_length=8, description="SETTING=A,B; one run for every combination")


def routes(workspace: Workspace) -> APIRouter:
    router = APIRouter()
    sweeps = workspace.sweeps

    @router.get("/sweeps")
    def listed() -> dict[str, Any]:
        return {"items": public(sweeps.begun())}

    @router.post("/sweeps", status_code=201)
    def submit(body: Sweep) -> dict[str, Any]:
        no_output(body.settings)
        jobs = sweeps.submit(build(TrainConfig, body.settings), body.over)
        return {"id": jobs[0].id, "jobs": [job.id for job in jobs]}

    @router.get("/sweeps/{id}/sheet")
    def sheet(id: str) -> FileResponse:
        """The last samples of every run, one run a row."""
        return send_file(sweeps.picture(id))

    @router.get("/recipes")
    def starting_points() -> dict[str, Any]:
        return {"items": [dataclasses.asdict(recipe) for recipe in recipes()]}

    @router.get("/recipes/{name}/diff/{job}")
    def diff(name: str, job: str) -> dict[str, Any]:
        """What of a recipe a run has otherwise."""
        found = differences(find(name), workspace.jobs.show(job).settings)
        return {"items": [dataclasses.asdict(one) for one in found]}

    return router
