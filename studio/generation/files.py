"""Picture files with their settings inside: PNG in text chunks, JPEG and WebP in EXIF, as A1111 does, and XMP for what is our own."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from studio.config import GenerateConfig
from studio.errors import ImageError, SettingsError
from studio.generation.infotext import CHUNK, Model, Recalled, Used, from_json, read, to_json, write
from studio.metadata import write_atomic

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
SEGMENT_BYTES = 65_000  # of the 65,533 that one part of a JPEG can hold, its own header left room
SPACE = "urn:lora-studio:settings"
_EXIF, _COMMENT = 0x8769, 0x9286
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"


def save(image: "Image.Image", path: Path, settings: GenerateConfig, adapters: Sequence[Used], model: Model) -> None:
    """Save the picture in settings.format with both texts, whole or not at all. Raises SettingsError as `check` does."""
    buffer = io.BytesIO()
    image.save(buffer, settings.format.upper(), **_options(settings, adapters, model))
    write_atomic(path, [buffer.getvalue()])


def check(settings: GenerateConfig, adapters: Sequence[Used], model: Model) -> None:
    """Raise SettingsError if the settings are too long for this kind of file, before anything is drawn."""
    _options(settings, adapters, model)


def load(source: Path | str | bytes) -> Recalled:
    """The settings of a PNG, JPEG or WebP: our own exactly, else another program's as far as they have a place here.

    Raises ImageError if the file carries none.
    """
    name = "the picture" if isinstance(source, bytes) else Path(source).name
    texts = _texts(source, name)
    try:
        if CHUNK in texts:
            return from_json(texts[CHUNK])
        if "parameters" in texts:
            return read(texts["parameters"])
    except SettingsError as error:
        raise ImageError(f"{name}: {error}") from None
    raise ImageError(f"{name}: carries no settings; a picture straight from the studio, A1111 or Forge does, a screenshot or an edited copy does not")


def _options(settings: GenerateConfig, adapters: Sequence[Used], model: Model) -> dict[str, Any]:
    """What Pillow is told to save."""
    text, own = write(settings, adapters, model), to_json(settings, adapters)
    if settings.format == "png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text("parameters", text.encode("utf-8", "replace").decode())
        info.add_text(CHUNK, own)
        return {"pnginfo": info}
    exif, xmp = _exif(text), _xmp(own)
    if settings.format == "jpeg" and max(len(exif), len(xmp)) > SEGMENT_BYTES:
        raise SettingsError("format jpeg: the prompts are too long for what a JPEG can carry; take webp or png, or shorten them")
    lossless = {"lossless": True} if settings.format == "webp" and settings.quality == 100 else {}
    return {"quality": settings.quality, "exif": exif, "xmp": xmp, **lossless}


def _exif(text: str) -> bytes:
    from PIL import Image

    exif = Image.Exif()
    exif.get_ifd(_EXIF)[_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be", "replace")
    return exif.tobytes()


def _xmp(own: str) -> bytes:
    body = f'<rdf:Description rdf:about="" xmlns:s="{SPACE}"><s:{CHUNK}>{escape(own)}</s:{CHUNK}></rdf:Description>'
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}">{body}</rdf:RDF></x:xmpmeta>'.encode()


def _texts(source: Path | str | bytes, name: str) -> dict[str, str]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=("PNG", "JPEG", "WEBP")) as image:
            found = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
            comment = image.getexif().get_ifd(_EXIF).get(_COMMENT) if "parameters" not in found else None
            packet = image.info.get("xmp", b"")
    except FileNotFoundError:
        raise ImageError(f"{source}: no such file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{name}: is no PNG, JPEG or WebP picture that can be read ({str(error)[:100]})") from None
    if isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
        found["parameters"] = _utf16(comment[8:])
    elif isinstance(comment, bytes) and comment.startswith(b"ASCII\0\0\0"):
        found["parameters"] = comment[8:].decode("ascii", "replace")
    own = _own(packet if isinstance(packet, bytes) else str(packet).encode()) if CHUNK not in found else ""
    return found | ({CHUNK: own} if own else {})


def _own(packet: bytes) -> str:
    """Our settings in an XMP packet, or nothing. Foreign packets may hold anything, and a declared entity is read by nobody."""
    if SPACE.encode() not in packet or b"<!" in packet:
        return ""
    try:
        return ElementTree.fromstring(packet.strip(b"\0 \n")).findtext(f".//{{{SPACE}}}{CHUNK}") or ""
    except ElementTree.ParseError:
        return ""


def _utf16(raw: bytes) -> str:
    """UTF-16 of either byte order: Latin text tells which."""
    little = raw[1::2].count(0) > raw[0::2].count(0)
    return raw.decode("utf-16-le" if little else "utf-16-be", "replace")
