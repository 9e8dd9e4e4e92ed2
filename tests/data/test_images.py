import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageDraw, PngImagePlugin

from studio.data.captions import decode_caption
from studio.data.decoding import MAX_PIXELS, PictureError, decode, decode_noted, pixel_hash
from studio.data.images import read_set
from studio.errors import ImageError


def picture(width: int = 96, height: int = 80, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    start = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def wide_png(channels: int, value: int, side: int = 64) -> bytes:
    """A 16-bit PNG of one value, which Pillow itself cannot write in colour."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = (b"\0" + struct.pack(">H", value) * channels * side) * side
    start = struct.pack(">IIBBBBB", side, side, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


JPEG = encoded(picture(), "JPEG", quality=90)
PNG = encoded(picture(), "PNG")
WEBP = encoded(picture(), "WEBP")

REFUSED = {
    "no bytes": (b"", "empty"),
    "one byte": (b"\xff", "not_image"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "truncated"),
    "JPEG without its end": (JPEG[:-2], "truncated"),
    "JPEG header only": (JPEG[:200], "truncated"),
    "half a PNG": (PNG[: len(PNG) // 2], "truncated"),
    "half a WebP": (WEBP[: len(WEBP) // 2], "truncated"),
    "PNG with damaged pixels": (PNG[:60] + bytes(200) + PNG[260:], "corrupt"),
    "PNG of no size": (png_header(0, 0), "corrupt"),
    "one pixel": (encoded(picture(8, 8).resize((1, 1)), "PNG"), "too_small"),
    "63 pixels": (encoded(picture().resize((63, 100)), "PNG"), "too_small"),
    "a line": (encoded(Image.new("1", (100_000, 1)), "PNG"), "aspect"),
    "a column": (encoded(Image.new("1", (1, 65_536)), "PNG"), "aspect"),
    "nine to one": (encoded(picture().resize((1000, 110)), "PNG"), "aspect"),
    "longer than any side may be": (png_header(16_400, 3000), "aspect"),
    "90 megapixels": (encoded(Image.new("L", (9500, 9500)), "PNG"), "too_many_pixels"),
    "just over the cap": (png_header(8193, 8192), "too_many_pixels"),
    "196 megapixels in a header": (png_header(14_000, 14_000), "too_many_pixels"),
    "the largest header": (png_header(2**31 - 1, 2**31 - 1, depth=1, colour=0), "too_many_pixels"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "heic"),
    "a web page": (b"<!DOCTYPE html><html><body>404</body></html>", "web_page"),
    "text": (b"just words", "not_image"),
    "safetensors": (b"\x08\0\0\0\0\0\0\0{}      ", "not_image"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_format"),
    "PDF": (b"%PDF-1.7\n", "unsupported_format"),
    "Photoshop": (b"8BPS\0\1", "unsupported_format"),
    "zip": (b"PK\x03\x04", "unsupported_format"),
    "PPM": (b"P6 50000 50000 255\n", "not_image"),
    "32-bit float TIFF": (encoded(Image.new("F", (64, 64), 0.5), "TIFF"), "unsupported_depth"),
    "32-bit integer TIFF": (encoded(Image.new("I", (64, 64), 70_000), "TIFF"), "unsupported_depth"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_with_a_stable_code_and_one_sentence(case):
    content, code = REFUSED[case]
    with pytest.raises(PictureError) as caught:
        decode(content)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_a_text_bomb_in_a_png_is_refused():
    extra = PngImagePlugin.PngInfo()
    extra.add_text("Comment", "0" * 60_000_000, zip=True)
    content = encoded(picture(), "PNG", pnginfo=extra)
    assert len(content) < 200_000
    with pytest.raises(PictureError) as caught:
        decode(content)
    assert caught.value.code == "corrupt"


def test_the_largest_allowed_size_is_not_refused_for_its_size():
    side = int(MAX_PIXELS**0.5)
    assert decode(encoded(Image.new("L", (side, side)), "PNG", compress_level=1)).size == (side, side)


def test_postscript_is_refused_without_starting_a_program(tmp_path, monkeypatch):
    canary = tmp_path / "started"
    fake = tmp_path / "gs"
    fake.write_text(f"#!/bin/sh\ntouch {canary}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert shutil.which("gs") == str(fake)
    content = encoded(picture(), "EPS")
    with pytest.raises(PictureError) as caught:
        decode(content)
    assert caught.value.code == "unsupported_format"
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
def test_allowed_formats_are_known_by_content_whatever_the_name(kind, tmp_path):
    path = tmp_path / "picture.txt"
    path.write_bytes(encoded(picture(), kind))
    image = decode(path)
    assert (image.mode, image.size) == ("RGB", (96, 80))
    assert np.abs(np.asarray(image, float) - np.asarray(picture(), float)).mean() < 12


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_modes_of_png_keep_their_colours(mode):
    image = picture(mode=mode)
    assert np.array_equal(np.asarray(decode(encoded(image, "PNG"))), np.asarray(image.convert("RGB")))


def test_a_png_without_its_end_mark_is_accepted():
    assert decode(PNG[:-12]).size == (96, 80)


def test_sixteen_bit_gray_is_scaled_and_not_clipped():
    found = decode_noted(wide_png(1, 30_000))
    assert found.image.getpixel((5, 5)) == (117, 117, 117)
    assert "reduced from 16 to 8 bits" in found.notes


def test_sixteen_bit_colour_is_reduced_with_a_note():
    found = decode_noted(wide_png(3, 30_000))
    assert found.image.getpixel((5, 5)) == (117, 117, 117)
    assert "reduced from 16 to 8 bits" in found.notes


def test_hidden_colour_under_full_transparency_never_shows():
    content = encoded(Image.new("RGBA", (64, 64), (255, 0, 0, 0)), "PNG")
    assert decode(content).getcolors() == [(64 * 64, (255, 255, 255))]
    assert decode(content, background=(0, 0, 255)).getcolors() == [(64 * 64, (0, 0, 255))]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_the_background_and_its_mask_is_kept(mode):
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    ImageDraw.Draw(image).rectangle((0, 0, 31, 63), fill=(0, 0, 0, 0))
    content = encoded(image.convert("LA"), "PNG") if mode == "LA" else encoded(image.quantize(4) if mode == "P" else image, "PNG")
    found = decode_noted(content)
    assert found.image.getpixel((5, 5)) == (255, 255, 255)
    assert found.image.getpixel((60, 5)) == (0, 0, 0)
    assert found.alpha is not None
    assert found.alpha.getpixel((5, 5)) == 0
    assert any("transparency" in note for note in found.notes)


def test_full_opacity_is_no_transparency():
    assert decode_noted(encoded(picture(mode="RGBA"), "PNG")).alpha is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_every_exif_orientation_is_turned_upright(kind, value, tmp_path):
    upright = Image.new("RGB", (96, 64), "white")
    for corner, colour in (((0, 0), "red"), ((64, 0), "lime"), ((0, 32), "blue")):
        upright.paste(Image.new("RGB", (32, 32), colour), corner)
    turns = [None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM]
    turns += [Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_270]
    turn = turns[value - 1]
    exif = Image.Exif()
    exif[0x0112] = value
    content = encoded(upright.transpose(turn) if turn is not None else upright, kind, exif=exif.tobytes(), quality=95)
    (tmp_path / f"a.{kind.lower()}").write_bytes(content)
    image = decode(content)
    for point, colour in (((16, 16), (255, 0, 0)), ((80, 16), (0, 255, 0)), ((16, 48), (0, 0, 255))):
        assert np.abs(np.subtract(image.getpixel(point), colour)).max() < 30
    found = read_set(tmp_path).pictures[0]
    assert (found.width, found.height) == image.size == (96, 64)


def test_an_orientation_behind_the_pixels_of_a_png_counts(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    body = exif.tobytes()[6:]
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    (tmp_path / "a.png").write_bytes(PNG[:-12] + chunk + PNG[-12:])
    found = read_set(tmp_path).pictures[0]
    assert decode(found.path).size == (found.width, found.height) == (80, 96)


def test_a_senseless_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 99
    assert decode(encoded(picture(), "JPEG", exif=exif.tobytes())).size == (96, 80)


def test_cmyk_keeps_its_colours():
    red = Image.new("RGB", (64, 64), (220, 20, 20)).convert("CMYK")
    for content in (encoded(red, "JPEG", quality=95), encoded(red, "TIFF")):
        r, g, b = decode(content).getpixel((30, 30))
        assert r > 190 and g < 60 and b < 60


def test_a_wider_colour_space_is_converted_to_srgb():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = decode(encoded(Image.new("RGB", (64, 64), (200, 60, 40)), "PNG", icc_profile=lab))
    assert plain.getpixel((5, 5)) == (200, 60, 40)
    swapped = lab.replace(b"rXYZ", b"tmpX").replace(b"gXYZ", b"rXYZ").replace(b"tmpX", b"gXYZ")  # red and green exchanged: any reader must notice
    swapped = swapped.replace(b"sRGB", b"wide").replace(b"s\0R\0G\0B", b"w\0i\0d\0e")
    found = decode_noted(encoded(Image.new("RGB", (64, 64), (200, 60, 40)), "PNG", icc_profile=swapped))
    r, g, _ = found.image.getpixel((5, 5))
    assert g > r
    assert "colours converted to sRGB" in found.notes


def test_a_garbage_profile_is_ignored_with_a_note():
    found = decode_noted(encoded(picture(), "PNG", icc_profile=b"rubbish" * 40))
    assert np.array_equal(np.asarray(found.image), np.asarray(picture()))
    assert any("profile ignored" in note for note in found.notes)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_the_first_of_several_frames_is_taken(kind):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "lime")]
    found = decode_noted(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    r, g, b = found.image.getpixel((9, 9))
    assert r > 240 and g < 15 and b < 15
    assert "first of 3 frames taken" in found.notes


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_are_refused_or_decoded_but_never_crash(data):
    content = bytearray(data.draw(st.sampled_from([JPEG, PNG, WEBP])))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode(bytes(content[: data.draw(st.integers(1, len(content)))])).mode == "RGB"
    except PictureError as error:
        assert error.code


def test_equal_pixels_have_equal_hashes_in_other_lossless_files():
    assert pixel_hash(decode(PNG)) == pixel_hash(decode(encoded(picture(), "WEBP", lossless=True)))
    assert pixel_hash(decode(PNG)) != pixel_hash(decode(JPEG))


def test_a_path_that_is_no_readable_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name, code in (("pipe.png", "not_file"), ("absent.png", "unreadable"), (".", "not_file")):
        with pytest.raises(PictureError) as caught:
            decode(tmp_path / name)
        assert caught.value.code == code


def save(folder: Path, **captions: str) -> None:
    for name, caption in captions.items():
        picture().save(folder / f"{name}.png")
        if caption:
            (folder / f"{name}.txt").write_text(caption, encoding="utf-8")


def test_a_set_is_its_pictures_in_name_order_with_captions(tmp_path):
    save(tmp_path, b="a dog", a="a cat,\nsitting\r\n", c="")
    found = read_set(tmp_path)
    assert [(p.name, p.caption, p.width, p.height) for p in found.pictures] == [
        ("a.png", "a cat, sitting", 96, 80),
        ("b.png", "a dog", 96, 80),
        ("c.png", "", 96, 80),
    ]
    assert found.name == tmp_path.name and found.trigger == ""


def test_a_changed_picture_has_another_hash(tmp_path):
    save(tmp_path, a="")
    before = read_set(tmp_path).pictures[0].sha256
    picture(64, 64).save(tmp_path / "a.png")
    assert read_set(tmp_path).pictures[0].sha256 != before


def test_pictures_of_one_stem_share_a_caption_unless_one_has_its_own(tmp_path):
    picture().save(tmp_path / "a.png")
    picture().save(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("both")
    (tmp_path / "a.caption").write_text("loses to .txt")
    assert [p.caption for p in read_set(tmp_path).pictures] == ["both", "both"]
    (tmp_path / "a.jpg.txt").write_text("own")
    assert {p.name: p.caption for p in read_set(tmp_path).pictures} == {"a.png": "both", "a.jpg": "own"}


def test_captions_pair_over_case_and_unicode_forms(tmp_path):
    picture().save(tmp_path / "CAF\u00c9.PNG")
    (tmp_path / "cafe\u0301.TXT").write_text("coffee")
    assert read_set(tmp_path).pictures[0].caption == "coffee"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
def test_captions_are_read_in_the_usual_encodings(encoding):
    assert decode_caption("  größer,\r\nrot\t\0\n".encode(encoding)) == "größer, rot"


def test_a_huge_caption_is_refused_by_the_name_of_its_picture(tmp_path):
    save(tmp_path, a="x" * 70_000)
    with pytest.raises(ImageError, match=r"a\.png: caption of 70,000 bytes"):
        read_set(tmp_path)


def test_set_json_names_trigger_and_kind(tmp_path):
    save(tmp_path, a="")
    (tmp_path / "set.json").write_text(json.dumps({"title": "T", "trigger": "zkz", "kind": "style", "licence": "CC0", "other": 1}))
    found = read_set(tmp_path)
    assert (found.title, found.trigger, found.kind, found.licence) == ("T", "zkz", "style", "CC0")
    (tmp_path / "set.json").write_text("{")
    with pytest.raises(ImageError, match=r"set\.json cannot be read"):
        read_set(tmp_path)


def test_hidden_files_pipes_and_links_out_are_passed_over(tmp_path):
    inside = tmp_path / "set"
    inside.mkdir()
    save(inside, a="")
    picture().save(inside / ".hidden.png")
    picture().save(tmp_path / "secret.png")
    (inside / "out.png").symlink_to(tmp_path / "secret.png")
    (inside / "in.png").symlink_to(inside / "a.png")
    (inside / "gone.png").symlink_to(inside / "nothing.png")
    os.mkfifo(inside / "pipe.png")
    (inside / "folder.png").mkdir()
    assert [p.name for p in read_set(inside).pictures] == ["a.png", "in.png"]


def test_a_picture_without_suffix_counts_by_its_content(tmp_path):
    (tmp_path / "photo").write_bytes(PNG)
    (tmp_path / "README").write_text("words")
    assert [p.name for p in read_set(tmp_path).pictures] == ["photo"]


def test_absent_empty_and_fake_are_told_in_one_line(tmp_path):
    with pytest.raises(ImageError, match="is not a folder"):
        read_set(tmp_path / "absent")
    with pytest.raises(ImageError, match="no picture in it; it takes"):
        read_set(tmp_path)
    (tmp_path / "10_cat").mkdir()
    with pytest.raises(ImageError, match="import the folder to take its sub-folders in"):
        read_set(tmp_path)
    (tmp_path / "cat.png").write_text("<html>")
    with pytest.raises(PictureError, match=r"^cat\.png: this is a web page") as caught:
        read_set(tmp_path)
    assert caught.value.code == "web_page"


def test_importing_needs_no_torch():
    code = "import sys, studio.data.images, studio.data.imports; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_random_bytes_are_never_a_picture():
    rng = random.Random(0)
    for _ in range(300):
        with pytest.raises(PictureError):
            decode(rng.randbytes(rng.randint(1, 400)))
