"""A process beside the studio for short questions that need torch. It takes neither a device nor a place in the queue.

Asked in lines of JSON, it answers in lines of JSON; it ends when nobody has asked for a while, and with the studio.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import studio
from studio.config import build
from studio.errors import FormatError, RunError, StudioError
from studio.families.base import Base
from studio.jobs.comparing import compared
from studio.jobs.handlers import base_from, base_values
from studio.jobs.spec import CheckConfig

IDLE_SECONDS = 90.0
ANSWER_SECONDS = 300.0


class Aside:
    """The process, started by the first question. One question at a time."""

    def __init__(self, idle_seconds: float = IDLE_SECONDS, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._idle_seconds, self._answer_seconds = idle_seconds, answer_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._idle: threading.Timer | None = None

    def compare(self, config: CheckConfig, files: Sequence[Path], base: Base | None) -> dict[str, Any]:
        """As `comparing.compared`. Raises FormatError in its words, and RunError if the process ends without an answer."""
        question = {"config": config.model_dump(mode="json"), "files": [str(path) for path in files], "base": base_values(base) if base else None}
        with self._lock:
            line = self._ask(json.dumps(question))
        answer = json.loads(line) if line.endswith("\n") else {}
        if "error" in answer:
            raise FormatError(answer["error"])
        if "found" not in answer:
            raise RunError("the LoRAs were not compared: the process that does so ended; the studio's terminal says why")
        return answer["found"]

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._end()

    def _ask(self, question: str) -> str:
        if self._idle:
            self._idle.cancel()
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = _started()
        process = self._process
        late = threading.Timer(self._answer_seconds, process.kill)
        late.daemon = True
        late.start()
        try:
            assert process.stdin and process.stdout
            process.stdin.write(question + "\n")
            process.stdin.flush()
            return process.stdout.readline()
        except BrokenPipeError:
            return ""
        finally:
            late.cancel()
            self._idle = threading.Timer(self._idle_seconds, self.close)
            self._idle.daemon = True
            self._idle.start()

    def _end(self) -> None:
        if self._idle:
            self._idle.cancel()
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):  # a question that it did not live to read
                    pipe.close()


def _started() -> "subprocess.Popen[str]":
    source = str(Path(studio.__file__).parents[1])
    path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "studio.jobs.aside"]
    # One thread: a training beside it needs the others more.
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment)


def main() -> None:
    """Answer questions until nobody asks any more."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints is no answer
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            files = [Path(path) for path in asked["files"]]
            found = compared(build(CheckConfig, asked["config"]), files, base_from(asked["base"]) if asked["base"] else None)
            print(json.dumps({"found": found}), file=answers, flush=True)
        except StudioError as error:
            print(json.dumps({"error": str(error)}), file=answers, flush=True)


if __name__ == "__main__":
    main()
