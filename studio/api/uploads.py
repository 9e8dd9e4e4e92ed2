"""Files of a multipart request, on disk for the time of one call."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from studio.errors import InputError

MAX_FILES = 1000


@asynccontextmanager
async def received(request: Request, folder: Path) -> AsyncIterator[list[tuple[str, Path]]]:
    """(name as sent, path) of each file; the paths, under a folder of our naming, are gone afterwards."""
    async with request.form(max_files=MAX_FILES, max_fields=10) as form:
        files = [item for _, item in form.multi_items() if isinstance(item, UploadFile)]
        if not files:
            raise InputError("no file came along; send them as multipart/form-data under the name files")
        with tempfile.TemporaryDirectory(dir=folder, prefix="upload-") as place:
            yield [(file.filename or "file", await run_in_threadpool(_store, file, Path(place) / str(i))) for i, file in enumerate(files)]


def _store(upload: UploadFile, target: Path) -> Path:
    suffix = Path(upload.filename or "").suffix.lower()
    target = target.with_suffix(suffix if suffix.isascii() and suffix[1:].isalnum() and len(suffix) <= 12 else "")
    with open(target, "wb") as file:
        shutil.copyfileobj(upload.file, file, 1024**2)
    return target
