"""A job's log.txt: what the process and its libraries print goes there, and printing never stops a job."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any


class Unfailing(io.RawIOBase):
    """Writes to an open file; what a full disk has no room for is left out."""

    def __init__(self, number: int) -> None:
        self._number = number

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return False

    def write(self, content: Any) -> int:
        with contextlib.suppress(OSError):
            return os.write(self._number, content)
        return memoryview(content).nbytes


@contextlib.contextmanager
def redirected(target: int) -> Iterator[None]:
    """Standard output and error of the whole process, native libraries included, go to `target` meanwhile; a training outlives a full log."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    streams = [io.TextIOWrapper(io.BufferedWriter(Unfailing(number)), "utf-8", "backslashreplace", line_buffering=True) for number in (1, 2)]
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            yield
    finally:
        for stream in streams:
            stream.flush()
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)
