"""Files of the page, served under an address that names their content, so that browsers keep them for good and never mix two versions."""

import hashlib
import re
from functools import lru_cache
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, Response

from studio.errors import NotFound

FOLDER = Path(__file__).parents[2] / "assets" / "ui"
DOCS = FOLDER.parent / "docs"
CSS = ("fonts", "tokens", "shell", "widgets", "views", "gradio")
_KINDS = {".css": "text/css", ".js": "text/javascript", ".woff2": "font/woff2", ".svg": "image/svg+xml", ".txt": "text/plain"}
_FOREVER = {"cache-control": "public, max-age=31536000, immutable"}


@lru_cache(maxsize=1)
def version() -> str:
    """Short hash over every file of the page."""
    digest = hashlib.sha256()
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(FOLDER).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def address(relative: str) -> str:
    return f"/studio-assets/{version()}/{relative}"


@lru_cache(maxsize=1)
def sprite() -> str:
    """Every icon as one SVG of symbols, each named as its file."""
    symbols = []
    for path in sorted((FOLDER / "icons").glob("*.svg")):
        attributes, body = re.fullmatch(r"<svg ([^>]*)>(.*)</svg>\s*", path.read_text(encoding="utf-8"), re.DOTALL).groups()  # type: ignore[union-attr]
        symbols.append(f'<symbol id="{path.stem}" {attributes.replace(_XMLNS, "")}>{body}</symbol>')
    return f"<svg {_XMLNS}>{''.join(symbols)}</svg>"


_XMLNS = 'xmlns="http://www.w3.org/2000/svg"'


def serve_assets(app: FastAPI) -> None:
    """Add the routes of the page's own files, and of the pictures in the guide."""

    @app.get("/studio-assets/{stamp}/icons.svg", include_in_schema=False)
    def icons(stamp: str) -> Response:
        return Response(sprite(), media_type="image/svg+xml", headers=_FOREVER)

    @app.get("/studio-assets/{stamp}/{relative:path}", include_in_schema=False)
    def asset(stamp: str, relative: str) -> FileResponse:
        return FileResponse(_found(FOLDER, relative), media_type=_KINDS.get(Path(relative).suffix), headers=_FOREVER)

    @app.get("/studio-docs/{relative:path}", include_in_schema=False)
    def drawing(relative: str) -> FileResponse:
        path = _found(DOCS, relative)
        if path.suffix not in (".png", ".jpg", ".webp", ".svg"):
            raise NotFound("nothing here")
        return FileResponse(path, media_type=_KINDS.get(path.suffix))

    @app.get("/favicon.ico", include_in_schema=False)
    def favicon() -> FileResponse:
        return FileResponse(FOLDER / "icons" / "favicon.svg", media_type="image/svg+xml")


def _found(folder: Path, relative: str) -> Path:
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise NotFound("nothing here")
    return path
