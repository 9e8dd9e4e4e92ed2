"""The n-th write, flush or rename fails, once or from then on, until a run of the calls meets no failure."""

import builtins
import errno
import io
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from studio.data.decoding import decode
from studio.data.imports import files_in, import_files
from studio.errors import ImageError, RunError, StudioError
from studio.events import Checkpoint, Step
from studio.jobs.exporting import publish
from studio.jobs.failures import explain  # noqa: F401  used by FILLING
from studio.jobs.folder import EventWriter, JobFolder
from studio.lora.adapter import Adapter, LowRank
from studio.metadata import read_header
from studio.training import checkpoint
from tests.jobs.conftest import draw_pictures

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)


def adapter(value: float) -> Adapter:
    path = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    return Adapter("sdxl", {path: LowRank(torch.full((2, 32), value), torch.full((32, 2), value), alpha=2.0)})


def save(folder: Path, step: int, value: float = 0.1) -> checkpoint.Stored:
    state = checkpoint.State(step=step, family="sdxl", images="hash", settings={"seed": 2})
    return checkpoint.save(folder, state, adapter(value), {"optimizer": {"w/exp_avg": torch.arange(3.0)}})


class Failing(io.FileIO):
    """A file whose writes pass the same gate as flushes and renames."""

    gate: Callable[[], None]

    def write(self, content: Any) -> int:
        type(self).gate()
        return super().write(content)


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, number: int, code: int, lasting: bool) -> Iterator[list[int]]:
    """Call `number` of write, fsync, rename and replace by this thread fails, and if lasting all after it; the list counts the calls."""
    calls: list[int] = []
    own = threading.get_ident()

    def gate() -> None:
        if threading.get_ident() != own:
            return  # the heartbeat of a worker that another test had in this process
        calls.append(1)
        if len(calls) == number or (lasting and len(calls) > number):
            raise OSError(code, os.strerror(code))

    def gated(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            gate()
            return real(*arguments, **options)

        return call

    real_open = io.open

    def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if "b" in mode and any(letter in mode for letter in "wxa+") and not isinstance(file, int):
            Failing.gate = staticmethod(gate)
            raw = Failing(file, mode.replace("b", ""))
            if options.get("buffering") == 0:
                return raw
            return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return real_open(file, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        for name in ("fsync", "rename", "replace"):
            patch.setattr(os, name, gated(getattr(os, name)))
        patch.setattr(io, "open", opened)
        patch.setattr(builtins, "open", opened)
        yield calls


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("code", ERRORS, ids=lambda code: errno.errorcode[code])
def test_a_checkpoint_is_the_old_or_the_new_one_whichever_call_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, lasting: bool) -> None:
    number, failed = 0, True
    while failed:
        number += 1
        folder = tmp_path / str(number)
        old = save(folder, 2)
        with failing(monkeypatch, number, code, lasting) as calls:
            try:
                save(folder, 4, 0.2)
                failed = False
            except RunError as error:
                assert os.strerror(code) in str(error) and "earlier ones are untouched" in str(error)
        assert checkpoint.verify(old.path).sha256 == old.sha256
        latest = checkpoint.latest(folder)
        assert latest and latest.step == (4 if (folder / "step-000004").exists() else 2)
        checkpoint.sweep(folder)
        assert {path.name for path in folder.iterdir()} <= {"step-000002", "step-000004"}
        assert not failed or len(calls) >= number
    assert number > 10  # writes, flushes and a rename of four files and two folders


@pytest.mark.parametrize("code", ERRORS, ids=lambda code: errno.errorcode[code])
def test_replacing_a_checkpoint_never_loses_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    number, failed = 0, True
    while failed:
        number += 1
        folder = tmp_path / str(number)
        old = save(folder, 2)
        with failing(monkeypatch, number, code, lasting=True):
            try:
                save(folder, 2, 0.2)
                failed = False
            except RunError:
                failed = True
        checkpoint.sweep(folder)
        latest = checkpoint.latest(folder)
        assert latest and (latest.sha256 == old.sha256 or not failed or latest.step == 2)


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("code", ERRORS, ids=lambda code: errno.errorcode[code])
def test_events_stay_readable_whichever_call_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, lasting: bool) -> None:
    told = [Step(step=1, total=9), Checkpoint(step=2, path="c", adapter="c/a", sha256="0", bytes=1), Step(step=3, total=9)]
    number, failed = 0, True
    while failed:
        number += 1
        path = tmp_path / str(number) / "events.jsonl"
        path.parent.mkdir()
        done = 0
        with failing(monkeypatch, number, code, lasting):
            try:
                writer = EventWriter(path)
                for event in told:
                    writer.append(event)
                    done += 1
                writer.close()
                failed = False
            except OSError as error:
                assert error.errno == code
        events, _ = JobFolder(path.parent).read()
        assert events[:done] == told[:done]
        writer = EventWriter(path)
        writer.append(Step(step=9, total=9))
        writer.close()
        assert JobFolder(path.parent).read()[0][-1].kind == "step"
    assert number > 3


@pytest.mark.parametrize("code", ERRORS, ids=lambda code: errno.errorcode[code])
def test_an_export_keeps_the_older_file_whichever_call_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    target = tmp_path / "mine.safetensors"
    publish(adapter(0.1), target, "kohya", "fp16", {})
    before = target.read_bytes()
    number, failed = 0, True
    while failed:
        number += 1
        with failing(monkeypatch, number, code, lasting=False):
            try:
                publish(adapter(0.2), target, "kohya", "fp16", {})
                failed = False
            except StudioError as error:
                assert "\n" not in str(error)
        if failed:
            assert target.read_bytes() == before or read_header(target).shapes
        assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]
    assert number > 1 and target.read_bytes() != before


def test_a_picture_that_the_disk_does_not_give_is_told_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, at the import, and when a training wants to encode it."""
    folder = draw_pictures(tmp_path / "circles", 3)
    real = Path.read_bytes

    def broken(path: Path) -> bytes:
        if path.name == "circle1.png":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", broken)
    report = import_files(list(files_in(folder)), tmp_path / "set")
    assert report.pictures == 2
    assert [(item.name, item.code) for item in report.rejected] == [("circle1.png", "unreadable")] and os.strerror(errno.EIO) in report.rejected[0].message
    with pytest.raises(ImageError, match=f"circle1.png.*{os.strerror(errno.EIO)}"):
        decode(folder / "circle1.png")


FILLING = """
import sys
from pathlib import Path
from tests.faults.test_failing_calls import explain, save, checkpoint
folder = Path(sys.argv[1]); old = save(folder, 2); error = None
ballast = folder.parent / "ballast"
with open(ballast, "wb", buffering=0) as file:
    try:
        while file.write(bytes(4096)): pass
    except OSError: pass
try:
    save(folder, 4)
except Exception as caught:
    error = caught
assert error is not None, "there was room"
told = explain(error, {}, folder, [])
assert told.message.endswith("(0.0 MB free)") and "free some space" in told.remedy, told
assert "No space left" in str(error) and "free space and resume" in str(error), error
assert checkpoint.latest(folder).sha256 == old.sha256 and [p.name for p in folder.iterdir()] == ["step-000002"]
ballast.unlink()
assert save(folder, 4).step == 4 and checkpoint.latest(folder).step == 4
print("survived")
"""


def test_a_full_disk_keeps_the_old_checkpoint_and_room_made_is_used(tmp_path: Path) -> None:
    """A real file system of 2 MB where the machine lets us mount one, else files that may not grow beyond some bytes."""
    root = Path(__file__).resolve().parents[2]
    mount = f"mount -t tmpfs -o size=2m studio {tmp_path} && exec {sys.executable} -c '{FILLING}' {tmp_path}/checkpoints"
    if subprocess.run(["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o size=2m studio {tmp_path}"], capture_output=True, check=False).returncode == 0:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", mount.replace("'", "'\"'\"'") if "'" in FILLING else mount], cwd=root, capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == "survived", done.stderr
        return

    def limited() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))

    save(tmp_path, 2)
    script = "import sys; from pathlib import Path; from tests.faults.test_failing_calls import save; save(Path(sys.argv[1]), 4)"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=root, preexec_fn=limited, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "earlier ones are untouched" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"] and save(tmp_path, 4).step == 4
