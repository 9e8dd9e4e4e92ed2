"""Records as JSON for a browser: no absolute path leaves the machine's own side, files go out under safe headers."""

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from fastapi.responses import FileResponse
from pydantic import BaseModel

# Settings that may hold a path; the browser is shown the last part of it.
PATH_FIELDS = frozenset(
    {"path", "output", "images", "base", "vae", "encoders", "start_from", "init_image", "mask", "name", "data", "file", "adapter", "source", "model"}
)
_PATH = re.compile(r"(?<![\w./:])(?:/|[A-Za-z]:[\\/])(?:[^\s/\\:'\",;()]+[/\\])+(?=[^\s/\\])")
_INLINE = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".avif": "image/avif",
    ".bmp": "image/bmp",
}


def without_paths(text: str) -> str:
    """The sentence with every absolute path cut down to its last part."""
    return _PATH.sub("", text)


def public(value: Any, field: str = "") -> Any:
    """`value` as JSON values, with absolute paths in path fields cut down to their last part."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: public(item, key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(item, field) for item in value]
    if isinstance(value, Path):
        return value.name
    if isinstance(value, str) and field in PATH_FIELDS and is_absolute(value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    if isinstance(value, str) and field in ("message", "remedy", "kept", "problem", "trouble"):
        return without_paths(value)
    return value


def is_absolute(text: str) -> bool:
    return PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()


def send_file(path: Path, *, name: str | None = None, keep: bool = False) -> FileResponse:
    """A file of the studio. Pictures are shown, anything else is saved; `keep`: the address names the content, so it may be cached for good."""
    kind = _INLINE.get(path.suffix.lower())
    shown = kind is not None and name is None
    headers = {"cache-control": "private, max-age=31536000, immutable" if keep else "private, no-cache"}
    return FileResponse(
        path,
        media_type=kind or "application/octet-stream",
        filename=name or path.name,
        content_disposition_type="inline" if shown else "attachment",
        headers=headers,
    )
