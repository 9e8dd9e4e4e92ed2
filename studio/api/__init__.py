"""HTTP and WebSocket routes over one Workspace."""

import errno
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from studio.api import adapters, bases, images, jobs, presets, sets, settings, stream, sweeps, tools
from studio.api.guards import Guard
from studio.api.replies import without_paths
from studio.errors import StudioError
from studio.workspace import Workspace

__all__ = ["app"]

log = logging.getLogger("studio.api")


def app(workspace: Workspace) -> FastAPI:
    """The application with every route under /api; its lifespan hands out jobs while it is up."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        workspace.start()
        yield

    application = FastAPI(title="LoRA Studio", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    for part in (sets, jobs, sweeps, adapters, tools, images, presets, bases, settings, stream):
        application.include_router(part.routes(workspace), prefix="/api")
    application.add_api_route("/api/{rest:path}", _nothing, methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    application.add_exception_handler(StudioError, _told)
    application.add_exception_handler(RequestValidationError, _invalid)
    application.add_exception_handler(HTTPException, _refused)
    application.add_exception_handler(OSError, _disk_refuses)
    application.add_exception_handler(Exception, _unexpected)
    application.add_middleware(Guard)
    return application


def _nothing(rest: str) -> None:
    raise HTTPException(404, "nothing here")


def _told(_: Request, error: Exception) -> Response:
    status = error.http_status if isinstance(error, StudioError) else 500
    return JSONResponse({"error": without_paths(str(error))}, status_code=status)


def _invalid(_: Request, error: Exception) -> Response:
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": "not understood"}
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return JSONResponse({"error": f"{where or 'request'}: {first['msg'].lower()}"}, status_code=422)


def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, status_code=error.status_code)


def _disk_refuses(request: Request, error: Exception) -> Response:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return JSONResponse({"error": "the disk is full; free some space and do it again"}, status_code=507)
    return _unexpected(request, error)


def _unexpected(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse({"error": "something unexpected went wrong; the studio's terminal says what"}, status_code=500)
