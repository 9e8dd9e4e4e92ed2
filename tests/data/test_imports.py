import errno
import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from studio.data import archives, intake
from studio.data.decoding import decode, pixel_hash
from studio.data.images import read_set
from studio.data.imports import Report, files_in, import_files, remove_leftovers
from studio.data.names import safe_stem
from studio.errors import ImageError


def noise(seed: int, mode: str = "RGB", side: int = 64) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((side, side)).convert(mode)


def png(seed: int, **options) -> bytes:
    out = io.BytesIO()
    noise(seed).save(out, "PNG", **options)
    return out.getvalue()


def put(folder: Path, **contents: bytes) -> list[tuple[str, Path]]:
    """Files by name, `__` for a dot."""
    folder.mkdir(exist_ok=True)
    files = []
    for key, content in contents.items():
        path = folder / key.replace("__", ".")
        path.write_bytes(content)
        files.append((path.name, path))
    return files


def zipped(path: Path, members: dict[str, bytes], **options) -> tuple[str, Path]:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path.name, path


def codes(report: Report) -> dict[str, str]:
    return {item.name: item.code for item in [*report.rejected, *report.skipped]}


def everything_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_pictures_and_captions_make_a_set(tmp_path):
    files = put(tmp_path / "up", b__txt=b"a dog\n", a__png=png(1), b__jpg=png(2), set__json=b'{"trigger": "zkz", "x": 1}')
    report = import_files(files, tmp_path / "sets" / "mine")
    assert (len(report.accepted), report.rejected, report.skipped, report.pictures) == (4, [], [], 2)
    found = read_set(tmp_path / "sets" / "mine")
    assert [(p.name, p.caption) for p in found.pictures] == [("a.png", ""), ("b.png", "a dog")]
    assert found.trigger == "zkz"
    assert everything_under(tmp_path / "sets") == {"mine", "mine/a.png", "mine/b.png", "mine/b.txt", "mine/set.json"}


def test_bad_files_are_rejected_with_codes_and_never_stop_the_others(tmp_path):
    good = png(1)
    files = put(tmp_path / "up", half__png=good[:90], web__png=b"<html>", good__png=good, none__jpg=b"", lone__txt=b"x", set__json=b"[")
    os.mkfifo(tmp_path / "up" / "pipe.png")
    files += [("gone.png", tmp_path / "gone.png"), ("pipe.png", tmp_path / "up" / "pipe.png"), (".DS_Store", tmp_path / "up" / "good.png")]
    report = import_files(files, tmp_path / "set")
    assert report.submitted == len(files)
    assert [item.name for item in report.accepted] == ["good.png"]
    expected = {"half.png": "truncated", "web.png": "web_page", "none.jpg": "empty", "lone.txt": "no_picture", "set.json": "bad_json"}
    assert codes(report) == expected | {"gone.png": "unreadable", "pipe.png": "not_file", ".DS_Store": "hidden"}


def test_a_set_without_a_picture_is_not_created(tmp_path):
    report = import_files(put(tmp_path / "up", a__png=b"no", a__txt=b"words"), tmp_path / "sets" / "new")
    assert report.pictures == 0 and report.submitted == 2
    assert everything_under(tmp_path / "sets") == set()


def test_the_same_pixels_are_taken_once_even_from_other_files(tmp_path):
    webp = io.BytesIO()
    noise(1).save(webp, "WEBP", lossless=True)
    files = put(tmp_path / "up", a__png=png(1), b__png=png(1, compress_level=1), c__webp=webp.getvalue(), d__png=png(2))
    report = import_files(files, tmp_path / "set")
    assert [item.name for item in report.accepted] == ["a.png", "d.png"]
    assert codes(report) == {"b.png": "duplicate", "c.webp": "duplicate"}
    again = import_files(files, tmp_path / "set")
    assert [item.code for item in again.skipped] == ["duplicate"] * 4


def test_captions_given_later_find_their_pictures_and_replace(tmp_path):
    import_files(put(tmp_path / "up", a__png=png(1), a__txt=b"one"), tmp_path / "set")
    import_files(put(tmp_path / "later", a__txt=b"two"), tmp_path / "set")
    assert read_set(tmp_path / "set").pictures[0].caption == "two"


def test_a_duplicate_gives_its_caption_only_where_none_is(tmp_path):
    import_files(put(tmp_path / "up", a__png=png(1)), tmp_path / "set")
    import_files(put(tmp_path / "again", b__png=png(1), b__txt=b"new"), tmp_path / "set")
    assert read_set(tmp_path / "set").pictures[0].caption == "new"
    report = import_files(put(tmp_path / "again", b__png=png(1), b__txt=b"newer"), tmp_path / "set")
    assert read_set(tmp_path / "set").pictures[0].caption == "new"
    assert codes(report) == {"b.png": "duplicate", "b.txt": "duplicate"}


def test_names_that_clash_are_all_kept_with_their_captions(tmp_path):
    files = put(tmp_path / "one", a__png=png(1), a__jpg=png(2), a__txt=b"both") + put(tmp_path / "two", A__PNG=png(3), con__png=png(4), x__png__jpg=png(5))
    report = import_files(files, tmp_path / "set")
    assert report.pictures == 5
    captions = {p.name: p.caption for p in read_set(tmp_path / "set").pictures}
    assert captions == {"a.png": "both", "a-2.png": "both", "A-3.png": "both", "_con.png": "", "x_png.png": ""}


def test_stored_copies_hold_no_metadata_but_the_same_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x013B] = "Secret Author"
    exif.get_ifd(0x8825)[1] = "N"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "Secret Words")
    files = put(tmp_path / "up")
    for kind, options in (
        ("jpg", {"quality": 80, "exif": exif, "comment": b"Secret Comment"}),
        ("png", {"pnginfo": text, "exif": exif}),
        ("webp", {"exif": exif}),
    ):
        path = tmp_path / "up" / f"{kind}.{kind}"
        noise(len(kind) + ord(kind[0]), side=96).crop((0, 0, 96, 72)).save(path, **options)
        files.append((path.name, path))
    with (tmp_path / "up" / "jpg.jpg").open("ab") as file:
        file.write(b"PK\x03\x04 Secret Tail")
    import_files(files, tmp_path / "set")
    for name, path in files:
        stored = next(p for p in read_set(tmp_path / "set").pictures if p.name.startswith(name.split(".")[0]))
        content = stored.path.read_bytes()
        assert b"Secret" not in content
        assert 0x8825 not in Image.open(io.BytesIO(content)).getexif()
        assert pixel_hash(decode(content)) == pixel_hash(decode(path)), name
        assert (stored.width, stored.height) == (72, 96)


def test_a_jpeg_keeps_its_compressed_pixels(tmp_path):
    for progressive in (False, True):
        path = tmp_path / f"photo{progressive}.jpg"
        noise(1 + progressive).save(path, quality=70, progressive=progressive)
        source = path.read_bytes()
        import_files([(path.name, path)], tmp_path / f"set{progressive}")
        stored = (tmp_path / f"set{progressive}" / path.name).read_bytes()
        scan = source.index(b"\xff\xda")
        assert stored.endswith(source[scan:])


def test_transparency_survives_in_the_stored_copy(tmp_path):
    image = noise(1, "RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(tmp_path / "a.png")
    import_files([("a.png", tmp_path / "a.png")], tmp_path / "set")
    for background in ((255, 255, 255), (10, 200, 30)):
        stored, source = (decode(path, background) for path in (tmp_path / "set" / "a.png", tmp_path / "a.png"))
        assert np.array_equal(np.asarray(stored), np.asarray(source))


def test_a_folder_is_taken_with_its_sub_folders(tmp_path):
    source = tmp_path / "src"
    (source / "10_cat" / "deep").mkdir(parents=True)
    (source / ".git").mkdir()
    for name in ("a.png", "10_cat/a.png", "10_cat/deep/a.png", ".git/a.png"):
        (source / name).write_bytes(png(len(name)))
    (source / "10_cat" / "a.txt").write_text("cat")
    (source / "loop").symlink_to(source)
    os.mkfifo(source / "pipe.png")
    assert [name for name, _ in files_in(source)] == ["a.png", "10_cat/a.png", "10_cat/a.txt", "10_cat/deep/a.png"]
    for given_files, place in ((files_in(source), "one"), ([("src", source)], "two")):
        report = import_files(given_files, tmp_path / place)
        assert (report.pictures, report.submitted) == (3, 4)
        assert sorted(p.caption for p in read_set(tmp_path / place).pictures) == ["", "", "cat"]


def test_a_zip_pairs_captions_within_each_of_its_folders(tmp_path):
    members = {"x/a.png": png(1), "y/a.png": png(2), "y/a.txt": b"two", "x/a.txt": b"one", "__MACOSX/x/._a.png": b"junk"}
    report = import_files([zipped(tmp_path / "s.zip", members)], tmp_path / "set")
    assert {p.name: p.caption for p in read_set(tmp_path / "set").pictures} == {"a.png": "one", "a-2.png": "two"}
    assert codes(report) == {"s.zip/__MACOSX/x/._a.png": "hidden"}
    assert report.submitted == len(members)


def test_two_zips_of_one_name_do_not_mix_their_captions(tmp_path):
    (tmp_path / "b").mkdir()
    one = zipped(tmp_path / "s.zip", {"a.png": png(1), "a.txt": b"one"})
    two = zipped(tmp_path / "b" / "s.zip", {"a.png": png(2), "a.txt": b"two"})
    import_files([one, two], tmp_path / "set")
    assert {p.name: p.caption for p in read_set(tmp_path / "set").pictures} == {"a.png": "one", "a-2.png": "two"}


def test_hostile_members_are_rejected_and_the_good_one_is_taken(tmp_path):
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("../../evil.png", "/abs.png", "..\\..\\x.png", "C:\\x.png", "d/" * 9 + "x.png", "in.zip", "ok.png"):
            archive.writestr(name, png(1))
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("bomb.png", bytes(50 * 2**20))
        archive.writestr("n" * 5000 + ".png", png(2))
        archive.writestr("ok.png/b.png", png(3))
    before = everything_under(tmp_path)
    report = import_files([("evil.zip", path)], tmp_path / "set")
    found = {name.removeprefix("evil.zip/"): code for name, code in codes(report).items()}
    bad = {"../../evil.png": "traversal", "/abs.png": "traversal", "..\\..\\x.png": "traversal", "C:\\x.png": "traversal"}
    assert found == bad | {"d/" * 9 + "x.png": "depth", "in.zip": "nested_archive", "link.png": "link", "bomb.png": "ratio"}
    assert report.pictures == 3
    assert everything_under(tmp_path) - before == {"set", "set/ok.png", "set/b.png", f"set/{'n' * 100}.png"}


def test_both_files_of_one_name_in_a_zip_are_kept(tmp_path):
    path = tmp_path / "twice.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", png(1))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.png", png(2))
        archive.writestr("A.png", png(3))
    assert import_files([("twice.zip", path)], tmp_path / "set").pictures == 3


def patched(content: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """The zip with bytes changed in every header of one kind."""
    out = bytearray(content)
    at = -1
    while (at := content.find(signature, at + 1)) >= 0:
        out[at + offset : at + offset + len(value)] = value
    return bytes(out)


LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"


def test_encrypted_unknown_method_and_damaged_members_are_rejected(tmp_path):
    _, path = zipped(tmp_path / "s.zip", {"a.png": png(1)})
    whole = path.read_bytes()
    data = whole.index(b"a.png") + 12
    cases = {
        "encrypted": patched(patched(whole, LOCAL, 6, b"\1"), CENTRAL, 8, b"\1"),
        "method": patched(patched(whole, LOCAL, 8, b"\x63"), CENTRAL, 10, b"\x63"),
        "damaged": whole[:data] + bytes([whole[data] ^ 0xFF, whole[data + 1] ^ 0xFF]) + whole[data + 2 :],
    }
    for code, content in cases.items():
        assert content != whole
        path.write_bytes(content)
        assert codes(import_files([("s.zip", path)], tmp_path / "set")) == {"s.zip/a.png": code}
    assert not (tmp_path / "set").exists()


def test_a_zip_that_is_none_or_broken_or_empty_is_rejected_whole(tmp_path):
    _, path = zipped(tmp_path / "s.zip", {"a.png": png(1)})
    whole = path.read_bytes()
    cases = [(whole[:-22], "bad_zip"), (whole[: len(whole) // 2], "bad_zip"), (b"Rar!\x1a\7", "not_zip"), (b"words", "not_zip"), (b"", "not_zip")]
    for content, code in [*cases, (b"PK\5\6" + bytes(18), "no_images")]:
        path.write_bytes(content)
        assert codes(import_files([("s.zip", path)], tmp_path / "set")) == {"s.zip": code}
    path.write_bytes(b"junk before" + whole)
    assert import_files([("s.zip", path)], tmp_path / "set").pictures == 1


def test_what_is_told_of_a_file_that_is_no_zip_says_what_it_is(tmp_path):
    _, path = zipped(tmp_path / "s.zip", {"a.png": png(1)})
    later = patched(path.read_bytes(), CENTRAL, 6, b"\xff")
    cases = [
        (b"<!doctype html><html>sign in</html>", "not_zip", "this is a web page, not a zip file; download the zip itself"),
        (b"Rar!\x1a\7", "not_zip", "this is a RAR archive, not a picture that can be read; unpack it, or make a zip of the pictures"),
        (b"", "not_zip", "the file is empty"),
        (png(1), "not_zip", "this is not a zip file"),
        (later, "method", "it is a zip of a later kind than is read; make the zip anew"),
    ]
    for content, code, message in cases:
        path.write_bytes(content)
        [refused] = import_files([("s.zip", path)], tmp_path / "set").rejected
        assert (refused.code, refused.message) == (code, message)


def test_a_disk_that_fails_while_a_zip_is_read_is_not_told_as_damage_of_the_zip(tmp_path):
    class Disk(io.BytesIO):
        fails = False

        def read(self, size: int | None = -1) -> bytes:
            if self.fails:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(size)

    _, path = zipped(tmp_path / "s.zip", {"a.png": png(1)})
    disk = Disk(path.read_bytes())
    with zipfile.ZipFile(disk) as archive:
        [item] = archives.expand(archive, "s.zip", "")
        assert item.read() == png(1)
        disk.fails = True
        with pytest.raises(ImageError, match=r"the zip cannot be read \(Input/output error\)"):
            item.read()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_is_told_as_damage_however_the_zip_is_packed(tmp_path, method):
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.png", png(1))
    whole = path.read_bytes()
    start = whole.index(b"a.png") + 5
    path.write_bytes(whole[:start] + bytes(byte ^ 0xFF for byte in whole[start : start + 20]) + whole[start + 20 :])
    assert codes(import_files([("s.zip", path)], tmp_path / "set")) == {"s.zip/a.png": "damaged"}


def test_overlapping_entries_are_rejected_whole(tmp_path):
    _, path = zipped(tmp_path / "s.zip", {"a.png": png(1), "b.png": png(2)})
    content = path.read_bytes()
    second = content.index(CENTRAL, content.index(CENTRAL) + 1)
    path.write_bytes(content[: second + 42] + struct.pack("<I", 1) + content[second + 46 :])
    report = import_files([("s.zip", path)], tmp_path / "set")
    assert codes(report) == {"s.zip": "overlapping"}


def test_limits_of_a_zip_hold_before_anything_is_written(tmp_path, monkeypatch):
    file = zipped(tmp_path / "s.zip", {f"{n}.png": png(n) for n in range(3)})
    for limit, code in (("MAX_ENTRIES", "too_many_entries"), ("MAX_UNPACKED_BYTES", "unpacks_too_big"), ("MAX_ARCHIVE_BYTES", "too_many_bytes")):
        with monkeypatch.context() as patch:
            patch.setattr(archives, limit, 2)
            assert codes(import_files([file], tmp_path / "set")) == {"s.zip": code}
    assert import_files([file], tmp_path / "set").pictures == 3


def full_disk(monkeypatch, after: int) -> None:
    written = []
    keep = intake.write

    def write(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        keep(path, content)

    monkeypatch.setattr(intake, "write", write)


def test_a_full_disk_leaves_nothing_of_a_new_set(tmp_path, monkeypatch):
    files = put(tmp_path / "up", a__png=png(1), b__png=png(2))
    full_disk(monkeypatch, after=1)
    with pytest.raises(ImageError, match=r"disk is full, \d+ MiB are free"):
        import_files(files, tmp_path / "sets" / "new")
    assert everything_under(tmp_path / "sets") == set()


def test_a_full_disk_keeps_what_an_old_set_had(tmp_path, monkeypatch):
    import_files(put(tmp_path / "up", a__png=png(1)), tmp_path / "set")
    full_disk(monkeypatch, after=1)
    with pytest.raises(ImageError, match="what was added before stays"):
        import_files(put(tmp_path / "more", b__png=png(2), c__png=png(3)), tmp_path / "set")
    assert everything_under(tmp_path / "set") == {"a.png", "b.png"}


def test_stopping_in_the_middle_leaves_nothing_of_a_new_set(tmp_path):
    class Stopped(Exception):
        pass

    def progress(done: int, total: int, name: str) -> None:
        if done == 1:
            raise Stopped

    with pytest.raises(Stopped):
        import_files(put(tmp_path / "up", a__png=png(1), b__png=png(2)), tmp_path / "sets" / "new", progress)
    assert everything_under(tmp_path / "sets") == set()


def test_progress_counts_every_file_to_the_end(tmp_path):
    seen = []
    import_files(put(tmp_path / "up", a__png=png(1), b__png=b"bad", a__txt=b"t"), tmp_path / "set", lambda *at: seen.append(at))
    assert seen == [(0, 3, "a.png"), (1, 3, "b.png"), (2, 3, "a.txt"), (3, 3, "")]


def test_leftovers_of_killed_imports_are_removed_and_nothing_else(tmp_path):
    import_files(put(tmp_path / "up", a__png=png(1)), tmp_path / "sets" / "good")
    (tmp_path / "sets" / ".new.part-abc").mkdir()
    (tmp_path / "sets" / ".new.part-abc" / "x.png").write_bytes(b"x")
    (tmp_path / "sets" / "good" / ".b.png.part-abc").write_bytes(b"x")
    assert [p.name for p in read_set(tmp_path / "sets" / "good").pictures] == ["a.png"]
    assert remove_leftovers(tmp_path / "sets") == 2
    assert everything_under(tmp_path / "sets") == {"good", "good/a.png"}


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ImageError, match="cannot be created"):
        import_files(put(tmp_path / "up", a__png=png(1)), tmp_path / "file" / "set")


@given(st.text(max_size=300), st.sets(st.text(max_size=5), max_size=5))
def test_any_name_becomes_one_that_every_system_takes(name, taken):
    stem = safe_stem(name, taken)
    assert 0 < len(stem.encode()) <= 100 + 1
    assert not set(stem) & set('<>:"/\\|?*.\0\n\r\t\u202e')
    assert stem == stem.strip() and not stem.startswith("-")
    assert stem.lower() not in {"con", "nul", "com1"}
    assert stem.casefold() not in taken


@pytest.mark.parametrize(
    ("name", "stem"),
    [("🦊 fox.png", "🦊 fox"), ("con.png", "_con"), ("--help.png", "help"), ("a.png ", "a"), ("..", "picture"), ("\u202egnp.exe", "gnp"), ("\xa0- 0.png", "0")],
)
def test_names_are_changed_no_more_than_needed(name, stem):
    assert safe_stem(name, set()) == stem


def test_bytes_of_random_zips_never_crash(tmp_path):
    _, path = zipped(tmp_path / "s.zip", {"a.png": png(1), "b.txt": b"words"})
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for n in range(150):
        content = bytearray(whole)
        for at in rng.integers(0, len(content), 4):
            content[at] = rng.integers(0, 256)
        path.write_bytes(bytes(content))
        report = import_files([("s.zip", path)], tmp_path / f"set{n}")
        assert report.submitted >= 1
    assert not list(tmp_path.glob(".*"))
