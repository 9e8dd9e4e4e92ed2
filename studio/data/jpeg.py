"""A JPEG without anything but its picture, its compressed pixels untouched."""

import struct

_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_COMMENT, _EXIF, _ADOBE = 0xFE, 0xE1, 0xEE
_ICC = b"ICC_PROFILE\0"
_BARE = {0x01, *range(0xD0, 0xD8)}  # markers without a length


def strip(content: bytes) -> bytes | None:
    """The first picture of the file with its tables, colour profile and orientation; None where the structure is unclear.

    EXIF, XMP, IPTC, comments, thumbnails, later pictures and trailing bytes are gone. Source: ITU-T T.81, annex B.
    """
    kept = [content[:2]]
    at = 2
    if content[:2] != bytes((0xFF, _START)):
        return None
    while at + 4 <= len(content):
        if content[at] != 0xFF:
            return None
        marker = content[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == _END:
            return b"".join([*kept, content[at : at + 2]])
        elif marker in _BARE:
            at += 2
        else:
            end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
            if marker == _SCAN:
                end = _scan_end(content, end)
            kept.append(_kept(marker, content[at:end]))
            at = end
    return b"".join([*kept, content[at:]]) if content[at:] == bytes((0xFF, _END)) else None


def _scan_end(content: bytes, at: int) -> int:
    """Where the entropy-coded bytes of a scan stop: at a marker that is neither a stuffed zero nor a restart."""
    while (at := content.find(b"\xff", at)) >= 0 and at + 1 < len(content):
        if content[at + 1] != 0 and not 0xD0 <= content[at + 1] <= 0xD7 and content[at + 1] != 0xFF:
            return at
        at += 1
    return len(content)


def _kept(marker: int, segment: bytes) -> bytes:
    """The segment if the picture needs it; an EXIF segment shrinks to its orientation."""
    body = segment[4:]
    if marker == _EXIF:
        return _orientation_only(body)
    if marker == _COMMENT or (0xE0 <= marker <= 0xEF and marker != _ADOBE and not body.startswith((b"JFIF\0", _ICC))):
        return b""
    if body.startswith(b"JFIF\0"):
        return bytes((0xFF, 0xE0)) + struct.pack(">H", 16) + body[:12] + b"\0\0"  # no thumbnail
    return segment


def _orientation_only(body: bytes) -> bytes:
    from PIL import Image

    if not body.startswith(b"Exif\0\0"):
        return b""
    exif = Image.Exif()
    try:
        exif.load(body)
        value = exif.get(0x0112, 1)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return b""
    if value not in range(2, 9):
        return b""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, value, 0)
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)
    return bytes((0xFF, _EXIF)) + struct.pack(">H", 2 + 6 + len(tiff)) + b"Exif\0\0" + tiff
