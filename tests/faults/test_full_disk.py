"""A disk that is really full: a file system of some megabytes, mounted for the test where the system lets us."""

import subprocess
import sys
from pathlib import Path

import pytest

from studio.jobs.log import redirected

ROOT = Path(__file__).resolve().parents[2]
SIZE = "48m"  # the preflight of a training asks for 16 MB


def mounted(folder: Path, command: str) -> "subprocess.CompletedProcess[str]":
    script = f"mount -t tmpfs -o size={SIZE} studio {folder} && {command}"
    return subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)


PLACES = [
    pytest.param("checkpoint-file:7", id="the second checkpoint"),
    pytest.param("cache:2 checkpoint-file:2 event-step:2 export:1", id="cache, first checkpoint, events, export", marks=pytest.mark.long),
]


@pytest.mark.parametrize("places", PLACES)
def test_a_full_disk_is_told_with_numbers_and_everything_goes_on_once_there_is_room(tmp_path: Path, places: str) -> None:
    """The database too; see tests/faults/full_disk.py."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if mounted(disk, "true").returncode:
        pytest.skip("no file system can be mounted here; tests/faults/test_failing_calls.py fails the calls instead")
    done = mounted(disk, f"{sys.executable} -m tests.faults.full_disk {disk}/data {places}")
    assert done.stdout.rstrip().endswith("survived"), done.stdout + done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_log_stops_nobody(tmp_path: Path) -> None:
    with open("/dev/full", "a") as full, redirected(full.fileno()):
        for _ in range(3):
            print("a line that finds no room", flush=True)
            print("and an error", file=sys.stderr, flush=True)
    with open(tmp_path / "log.txt", "a") as log, redirected(log.fileno()):
        print("one that does")
    assert (tmp_path / "log.txt").read_text() == "one that does\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_printing_into_a_full_file_does_fail_otherwise() -> None:
    """The control: without our streams the same print is an error."""
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "a") as full:
        print("a line that finds no room", file=full, flush=True)
