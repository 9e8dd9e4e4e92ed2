"""/api/jobs: submit, follow, steer, fetch what a job made."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from studio.api.kept import Kept
from studio.api.replies import public, send_file, without_paths
from studio.api.undo import Token
from studio.config import GenerateConfig, TrainConfig, build, safe_stem
from studio.errors import NotFound, SettingsError
from studio.workspace import Workspace

POINTS = 2000
Key = Annotated[str, Header(max_length=100, description="the same one again is answered with the job that it made")]


class Steps(BaseModel):
    steps: int = Field(ge=1, le=1_000_000)


class Place(BaseModel):
    place: int = Field(ge=0, le=1_000_000)


class Priority(BaseModel):
    priority: int = Field(ge=-1000, le=1000, description="higher ones run first; 0 is the usual one")


class Changes(BaseModel):
    changes: dict[str, Any] = Field(default={}, description="settings that are to be other ones")


class Evaluation(BaseModel):
    images: str | None = Field(default=None, max_length=300, description="image set to measure by; without it the pictures that the run held out")


class Fit(BaseModel):
    settings: dict[str, Any] = Field(description="those of a training run; the image set may be left out")
    card: float | None = Field(default=None, ge=1, le=1000, description="GB of another card than this machine's")


class Export(BaseModel):
    source: str = Field(min_length=1, max_length=300, description="run, RUN@STEP, or a library name")
    name: str = Field(default="", max_length=200, description="stem of the file")
    format: Literal["kohya", "peft"] = "kohya"
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    library: bool = Field(default=False, description="put the file into the library instead of offering it for download")


def routes(workspace: Workspace) -> APIRouter:
    router = APIRouter(prefix="/jobs")
    _submit(router, workspace)
    _read(router, workspace)
    _files(router, workspace)
    _steer(router, workspace)
    return router


def _submit(router: APIRouter, workspace: Workspace) -> None:
    jobs = workspace.jobs

    @router.post("/train", status_code=201)
    def train(body: dict[str, Any], idempotency_key: Key = "") -> dict[str, Any]:
        no_output(body)
        return public(jobs.train(build(TrainConfig, body), idempotency_key))

    @router.post("/train/plan")
    def plan(body: Fit) -> dict[str, Any]:
        """What a run would take of a card, part by part, and how it would be made to fit; nothing is started."""
        no_output(body.settings)
        config = build(TrainConfig, {"images": "none yet", **body.settings})
        return workspace.fitting.plan(config, body.card, counted="images" in body.settings)

    @router.post("/generate", status_code=201)
    def generate(body: dict[str, Any], idempotency_key: Key = "") -> dict[str, Any]:
        return public(jobs.generate(build(GenerateConfig, body), idempotency_key))

    @router.post("/caption", status_code=201)
    def caption(body: dict[str, Any], idempotency_key: Key = "") -> dict[str, Any]:
        return public(workspace.captions.make(body, idempotency_key))

    @router.post("/{id}/uncaption")
    def uncaption(id: str) -> dict[str, Any]:
        return {"restored": workspace.captions.undo(id)}

    @router.post("/export", status_code=201)
    def export(body: Export) -> dict[str, Any]:
        folder = exports(workspace)
        if not body.library:
            folder.mkdir(exist_ok=True)
        target = None if body.library else folder / f"{safe_stem(body.name or body.source)}.safetensors"
        return public(jobs.export(body.source, target, body.format, body.dtype))


def no_output(settings: dict[str, Any]) -> None:
    """Raise SettingsError if the settings name a file to write, as only a command line may."""
    if settings.get("output"):
        raise SettingsError("setting 'output' is for the command line; here the file is found in the library and under exports")


def exports(workspace: Workspace) -> Path:
    """Where files for others are written, inside the data folder."""
    return workspace.layout.root / "exports"


def _read(router: APIRouter, workspace: Workspace) -> None:
    jobs = workspace.jobs

    kept = Kept(lambda: workspace.version)

    @router.get("")
    async def listed(
        request: Request, kind: str | None = None, state: str | None = None, before: str | None = None, limit: int = Query(100, ge=1, le=500)
    ) -> Response:
        wish = (kind, state, before, limit)
        return await kept.reply(request, wish, lambda: {"items": public(jobs.list(*wish))})

    @router.get("/queue")
    async def queue(request: Request) -> Response:
        """Every running and queued job in the order they run, without settings and results."""
        return await kept.reply(request, "queue", lambda: {"items": public(jobs.queue())})

    @router.get("/{id}")
    def show(id: str) -> dict[str, Any]:
        return public(jobs.show(id))

    @router.get("/{id}/command")
    def command(id: str) -> dict[str, Any]:
        """The command line that asks for the same; `cut`: paths of this machine were cut down to their last part."""
        whole = workspace.command_line(id)
        return {"command": without_paths(whole), "cut": whole != without_paths(whole)}

    @router.get("/{id}/events")
    def events(id: str, after: int = Query(0, ge=0)) -> dict[str, Any]:
        return public(jobs.events(id, after))

    @router.get("/{id}/history")
    def history(id: str) -> dict[str, Any]:
        """Everything a page needs to draw a run: at most `POINTS` steps (number, loss, learning rate, gradient norm), and all other events."""
        told = jobs.events(id).events
        figures = {event.step: [event.loss, event.learning_rate, event.gradient_norm] for event in told if event.kind == "step" and event.loss is not None}
        steps = sorted(figures)
        stride = max(1, -(-len(steps) // POINTS))
        kept = sorted({*steps[::stride], *steps[-1:]})
        return {"points": [[step, *figures[step]] for step in kept], "events": [public(event) for event in told if event.kind != "step"]}

    @router.get("/{id}/checkpoints")
    def checkpoints(id: str) -> dict[str, Any]:
        return {"items": public(jobs.checkpoints(id))}


def _files(router: APIRouter, workspace: Workspace) -> None:
    jobs = workspace.jobs

    @router.get("/{id}/files/{relative:path}")
    def file(id: str, relative: str) -> FileResponse:
        return send_file(jobs.file(id, relative), keep=True)

    @router.get("/{id}/export")
    def exported(id: str) -> FileResponse:
        """The file that a training run or an export wrote for others."""
        told = jobs.show(id).result.get("path", "")
        if not told:
            raise NotFound(f"job {id!r} has written no file")
        path = Path(told)
        if path.is_absolute():
            path = exports(workspace) / path.name
            if not path.is_file():
                raise NotFound(f"{path.name} is no longer among the exports")
            return send_file(path)
        return send_file(jobs.file(id, told))


def _steer(router: APIRouter, workspace: Workspace) -> None:
    jobs = workspace.jobs
    verbs: dict[str, Callable[[str], Any]] = {
        "cancel": jobs.cancel,
        "sample": jobs.sample_now,
        "pin": jobs.pin,
        "finish": jobs.finish_now,
        "pause": jobs.pause,
        "resume": jobs.resume,
        "retry": jobs.retry,
    }

    def add(verb: str, act: Callable[[str], Any]) -> None:
        @router.post(f"/{{id}}/{verb}")
        def steer(id: str) -> dict[str, Any]:
            return public(act(id))

    for verb, act in verbs.items():
        add(verb, act)

    @router.post("/{id}/extend")
    def extend(id: str, body: Steps) -> dict[str, Any]:
        return public(jobs.extend(id, body.steps))

    @router.post("/{id}/move")
    def move(id: str, body: Place) -> dict[str, Any]:
        return public(jobs.move(id, body.place))

    @router.post("/{id}/priority")
    def prioritise(id: str, body: Priority) -> dict[str, Any]:
        return public(jobs.prioritise(id, body.priority))

    @router.post("/{id}/duplicate", status_code=201)
    def duplicate(id: str, body: Changes, idempotency_key: Key = "") -> dict[str, Any]:
        no_output(body.changes)
        return public(jobs.duplicate(id, body.changes, idempotency_key))

    @router.post("/{id}/fork", status_code=201)
    def fork(id: str, body: Changes, idempotency_key: Key = "") -> dict[str, Any]:
        no_output(body.changes)
        return public(jobs.fork(id, body.changes, idempotency_key))

    @router.post("/{id}/evaluate", status_code=201)
    def evaluate(id: str, body: Evaluation) -> dict[str, Any]:
        return public(jobs.evaluate(id, body.images))

    @router.delete("/{id}")
    def remove(id: str) -> dict[str, Any]:
        return {"token": jobs.remove(id)}

    @router.post("/restore")
    def restore(body: Token) -> dict[str, Any]:
        return public(jobs.restore(body.token))
