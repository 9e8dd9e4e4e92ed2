"""The data folder."""

from pathlib import Path

import pytest

from studio.errors import InputError, NotFound
from studio.library.files import place, write_whole
from studio.library.layout import Layout, checked_id, data_root, inside


def test_the_data_folder_is_private_and_one_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "a" / "b").create()
    assert oct(layout.root.stat().st_mode)[-3:] == "700" and layout.jobs.is_dir()
    with pytest.raises(InputError, match="--data or STUDIO_DATA"):
        Layout(Path("/proc/nothing")).create()


def test_the_data_folder_is_as_given_else_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIO_DATA", str(tmp_path / "env"))
    assert data_root() == tmp_path / "env" and data_root(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("STUDIO_DATA")
    assert data_root().name == "lora-studio"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "link", "a\0b", ".."])
def test_no_name_leads_out_of_a_folder(tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "x").write_text("secret")
    (home / "link").symlink_to(tmp_path / "x")
    with pytest.raises((NotFound, ValueError)):
        inside(home, name)
    with pytest.raises(NotFound):
        checked_id(name.replace("link", "li/nk"), "job")


def test_files_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a", b"one")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError):
        write_whole(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"one" and len(list(tmp_path.iterdir())) == 1


def test_placing_links_or_copies_and_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"x")
    place(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError(18, "other device")))
    place(tmp_path / "a", tmp_path / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"] and (tmp_path / "c").read_bytes() == b"x"
