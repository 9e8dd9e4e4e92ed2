"""One picture from anywhere, decoded safely to upright sRGB. What a file is follows from its content, never from its name."""

import hashlib
import io
import stat
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from studio.errors import ImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")  # no EPS: Pillow would start Ghostscript
MAX_PIXELS = 64 * 2**20
MAX_SIDE = 16_384
MIN_SIDE = 64
MAX_ASPECT = 8
MAX_BYTES = 256 * 2**20
SMALL_SIDE = 256

warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class PictureError(ImageError):
    """One picture that cannot be used: `code` is stable, the text is one plain sentence without the file's name."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Decoded:
    """A picture upright in sRGB. `colour` is it bare, `alpha` its mask where it had one, `image` both on the background."""

    image: Image.Image
    colour: Image.Image
    alpha: Image.Image | None
    format: str
    notes: tuple[str, ...]


def decode(source: Path | bytes, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """The picture upright, in sRGB, transparency laid on the background. Raises PictureError."""
    try:
        return decode_noted(source, background).image
    except PictureError as error:
        raise named(error, source) from error.__cause__


def decode_noted(source: Path | bytes, background: tuple[int, int, int] = (255, 255, 255)) -> Decoded:
    """As `decode`, with what had to be changed on the way: frames left out, depth reduced, profile ignored."""
    content = source if isinstance(source, bytes) else read_bytes(source)
    image = open_picture(content)
    check_size(*upright_size(image))
    notes = []
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        notes.append(f"first of {image.n_frames} frames taken")  # type: ignore[attr-defined]
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    if (kind == "PNG" and content[24] == 16) or image.mode.startswith("I;16"):
        notes.append("reduced from 16 to 8 bits")
    profile = image.info.get("icc_profile")
    _load(image)
    upright = _turn(image, notes)
    colour, alpha = _split(upright)
    rgb = _to_srgb(colour, profile, notes)
    if min(rgb.size) < SMALL_SIDE:
        notes.append(f"small: {rgb.width}x{rgb.height}")
    if alpha is None:
        return Decoded(rgb, rgb, None, kind, tuple(notes))
    notes.append("transparency laid on the background")
    canvas = Image.new("RGB", rgb.size, background)
    canvas.paste(rgb, mask=alpha)
    return Decoded(canvas, rgb, alpha, kind, tuple(notes))


def pixel_hash(image: Image.Image) -> str:
    """sha256 of size and pixels: equal for the same picture in other lossless files."""
    return hashlib.sha256(f"{image.mode} {image.width} {image.height} ".encode() + image.tobytes()).hexdigest()


def read_bytes(path: Path) -> bytes:
    """Content of a regular file. Raises PictureError when it is none, too big, or cannot be read."""
    try:
        mode = path.stat()
        if not stat.S_ISREG(mode.st_mode):
            raise PictureError("not_file", "not a regular file")
        if mode.st_size > MAX_BYTES:
            raise PictureError("too_many_bytes", f"{mode.st_size / 2**20:.0f} MiB is over the limit of {MAX_BYTES // 2**20} MiB a picture")
        return path.read_bytes()
    except OSError as error:
        raise PictureError("unreadable", f"cannot be read ({error.strerror or type(error).__name__})") from error


def check_size(width: int, height: int) -> None:
    """Raise PictureError unless a picture of this size can be used."""
    if width * height > MAX_PIXELS:
        raise PictureError("too_many_pixels", f"{width}x{height} is over the limit of {MAX_PIXELS // 2**20} megapixels; scale it down")
    if max(width, height) > MAX_ASPECT * min(width, height) or max(width, height) > MAX_SIDE:
        raise PictureError("aspect", f"{width}x{height} is too long; sides may differ by {MAX_ASPECT} times, up to {MAX_SIDE} pixels; crop it")
    if min(width, height) < MIN_SIDE:
        raise PictureError("too_small", f"{width}x{height} is too small; the shorter side must have {MIN_SIDE} pixels")


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height as seen, known from the header alone."""
    # Pillow turns TIFF by itself and already reports the turned size.
    turned = image.format != "TIFF" and orientation(image) >= 5
    return (image.height, image.width) if turned else image.size


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where it is absent, senseless or unreadable."""
    raw = image.info.get("exif")
    if not raw:
        return 1
    exif = Image.Exif()  # not image.getexif(): for PNG that decodes the pixels, and hides their damage
    try:
        exif.load(raw)
        value = exif.get(0x0112, 1)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return 1
    return value if value in _TURNS else 1


def named(error: PictureError, source: Path | bytes) -> PictureError:
    return error if isinstance(source, bytes) else PictureError(error.code, f"{source.name}: {error}")


def open_picture(content: bytes) -> Image.Image:
    if not content:
        raise PictureError("empty", "the file is empty")
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError("too_many_pixels", f"over the limit of {MAX_PIXELS // 2**20} megapixels; scale it down") from error
    except Image.UnidentifiedImageError as error:
        raise _what_else(content) from error
    # Broken files make decoders raise nearly anything; each means that this one picture is unusable.
    except Exception as error:
        raise (_cut_off() if _ends_early(content) else _broken(error)) from error


def _ends_early(content: bytes) -> bool:
    """Whether a WebP is shorter than its first bytes say; its decoder does not tell."""
    return content.startswith(b"RIFF") and int.from_bytes(content[4:8], "little") + 8 > len(content)


def _cut_off() -> PictureError:
    return PictureError("truncated", "the picture is cut off; copy or download it again")


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except Exception as error:  # as in open_picture
        raise _broken(error) from error


def _broken(error: Exception) -> PictureError:
    if "truncated" in str(error).lower():
        return _cut_off()
    return PictureError("corrupt", f"the picture is damaged ({type(error).__name__}); copy or download it again")


_KNOWN = {
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"%PDF": "a PDF",
    b"8BPS": "a Photoshop file",
    b"DDS ": "a DDS texture",
    b"SIMP": "a FITS file",
    b"<svg": "an SVG drawing",
    b"<?xm": "an XML file",
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x1f\x8b": "a gzip archive",
    b"PK\x03\x04": "a zip archive",
}


def _what_else(content: bytes) -> PictureError:
    """The refusal for content that no allowed format claims, naming what it is where that is known."""
    start = content[:512].lstrip()
    lower = start[:64].lower()
    if content[4:8] == b"ftyp" and content[8:12] in (b"heic", b"heix", b"mif1", b"hevc", b"msf1"):
        return PictureError("heic", "HEIC pictures are not read; export it as JPEG or PNG")
    if lower.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return PictureError("web_page", "this is a web page, not a picture; download the picture itself")
    name = next((title for magic, title in _KNOWN.items() if start.startswith(magic)), None)
    if name:
        way_out = "unpack it, or make a zip of the pictures" if name.endswith("archive") else "export it as PNG or JPEG"
        return PictureError("unsupported_format", f"this is {name}, not a picture that can be read; {way_out}")
    if start.startswith((b"\xff\xd8", b"\x89PNG", b"GIF8")) or (start.startswith(b"RIFF") and start[8:12] == b"WEBP"):
        if len(content) < 32 or start[:2] == b"\xff\xd8" or start[:4] == b"RIFF":
            return _cut_off()
        return PictureError("corrupt", "the picture is damaged; copy or download it again")
    return PictureError("not_image", "this is not a picture; PNG, JPEG, WebP, AVIF, TIFF, BMP and GIF can be read")


def _turn(image: Image.Image, notes: list[str]) -> Image.Image:
    turn = _TURNS.get(1 if image.format == "TIFF" else orientation(image))
    if turn is None:
        return image
    notes.append("turned upright")
    return image.transpose(turn)


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colour as L, RGB or CMYK, and the alpha mask where one hides anything."""
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.float32)
        return Image.fromarray(np.rint(wide / 257).astype(np.uint8)), None
    if image.mode in ("I", "F") or image.mode not in ("1", "L", "P", "RGB", "LA", "PA", "RGBA", "RGBa", "La", "CMYK", "YCbCr", "RGBX"):
        raise PictureError("unsupported_depth", f"pixels of kind {image.mode!r} are not read; export it with 8 or 16 bits a channel")
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        full = image.convert("RGBA")
        alpha = full.getchannel("A")
        return full.convert("RGB"), alpha if alpha.getextrema() != (255, 255) else None
    if image.mode in ("L", "CMYK"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _to_srgb(colour: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "srgb" not in ImageCms.getProfileDescription(source).lower():
                converted = ImageCms.profileToProfile(colour, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
                notes.append("colours converted to sRGB")
                return converted if converted is not None else colour.convert("RGB")
        except (ImageCms.PyCMSError, OSError):
            notes.append("colour profile ignored: it cannot be read")
    return colour.convert("RGB")
