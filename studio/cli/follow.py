"""Watching a job from a terminal: events in, progress out, Ctrl+C passed on."""

import contextlib
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from studio import errors
from studio.cli.output import emit, size, tell
from studio.events import Event

if TYPE_CHECKING:
    from studio.workspace import Workspace

SMOOTHING = 0.1  # weight of the newest loss in the figure shown
PLAIN_SECONDS = 10.0  # between lines where there is no terminal


def follow(workspace: "Workspace", job: str, *, as_json: bool, seen: Callable[[Event], Event] | None = None) -> int:
    """Report a job until it ends; its exit code. `seen` may turn an event into the one to report, for example with another path."""
    display = None if as_json else Display(sys.stderr)
    code = 0
    with _interruptible(lambda: workspace.jobs.cancel(job)):
        for event in workspace.jobs.follow(job):
            shown = seen(event) if seen else event
            if display is None:
                emit(shown)
            else:
                display.show(shown)
            code = exit_code(event, code)
    return code


def exit_code(event: Event, before: int) -> int:
    """What an ending event means for the shell: bad input found by the worker counts as such."""
    if event.kind == "cancelled":
        return errors.Cancelled.exit_code
    if event.kind == "failed":
        kind = getattr(errors, event.error, None)
        wrong_input = isinstance(kind, type) and issubclass(kind, errors.InputError)
        return errors.InputError.exit_code if wrong_input else errors.RunError.exit_code
    return 0 if event.kind in ("finished", "paused") else before


@contextlib.contextmanager
def _interruptible(cancel: Callable[[], object]) -> Iterator[None]:
    """The first Ctrl+C asks the job to stop, the second leaves without waiting for it."""
    asked = threading.Event()

    def interrupted(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        threading.Thread(target=cancel, daemon=True).start()  # a signal may arrive while this thread holds the database
        tell("\nCancelling after this step; Ctrl+C again leaves at once.")

    try:
        before = signal.signal(signal.SIGINT, interrupted)
    except ValueError:  # not the main thread: whoever runs there hears the signal
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Display:
    """One line that moves on a terminal; elsewhere plain lines, now and then."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._open = False
        self._spoken = 0.0
        self._phase = ""
        self._loss: float | None = None
        self._pace: float | None = None

    def show(self, event: Event) -> None:
        if event.kind == "loading":
            self._moving(event.phase, event.done, event.total, "", new=event.phase != self._phase)
            self._phase = event.phase
        elif event.kind == "step":
            self._step(event.step, event.total, event.loss, event.seconds)
        elif event.kind == "started":
            self._line(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in event.facts.items() if isinstance(value, int | float | str)) or "started")
        elif event.kind == "warned":
            self._line(f"note: {event.message}")
        elif event.kind == "sample":
            self._line(f"sample at step {event.step}: {event.path}")
        elif event.kind == "image":
            self._line(f"{event.path}  seed {event.seed}")
        elif event.kind == "sheet":
            self._line(f"{event.path}  the whole grid")
        elif event.kind == "checkpoint":
            self._line(f"checkpoint at step {event.step}, {size(event.bytes)}")
        elif event.kind == "exported":
            self._line(f"wrote {event.path}")
        elif event.kind == "validation":
            between = f" ({event.low:.4f} to {event.high:.4f})" if event.low is not None and event.high is not None else ""
            self._line(f"held-out loss {event.loss:.4f}{between} at step {event.step}{', the best so far' if event.best else ''}")
        else:
            self._end(event)

    def downloading(self, name: str, n_bytes: int, total: int) -> None:
        """A download, counted in MB."""
        self._moving(f"{name} (MB)", round(n_bytes / 1e6), max(1, round(total / 1e6)), "", new=n_bytes >= total)

    def _step(self, step: int, total: int, loss: float | None, seconds: float) -> None:
        if loss is not None:
            self._loss = loss if self._loss is None else self._loss + SMOOTHING * (loss - self._loss)
        if seconds > 0:
            self._pace = seconds if self._pace is None else self._pace + SMOOTHING * (seconds - self._pace)
        words = [f"loss {self._loss:.4f}"] if self._loss is not None else []
        if self._pace:
            left = round((total - step) * self._pace)
            words += [f"{1 / self._pace:.1f} steps/s" if self._pace < 1 else f"{self._pace:.1f} s/step", f"{left // 60}:{left % 60:02d} left"]
        self._moving("step", step, total, "  ".join(words), new=step == total)

    def _moving(self, name: str, done: int, total: int, words: str, *, new: bool) -> None:
        now = time.monotonic()
        count = f" {done}/{total}" if total else ""
        if not self._live:
            if new or now - self._spoken >= PLAIN_SECONDS:
                self._spoken = now
                self._stream.write(f"{name}{count}  {words}".rstrip() + "\n")
                self._stream.flush()
            return
        bar = ""
        if total:
            filled = round(24 * done / total)
            bar = f" [{'#' * filled}{'.' * (24 - filled)}]"
        width = shutil.get_terminal_size().columns - 1
        self._stream.write("\r" + f"{name}{bar}{count}  {words}"[:width].ljust(width))
        self._stream.flush()
        self._open = True

    def _line(self, words: str) -> None:
        if self._open:
            self._stream.write("\n")
            self._open = False
        self._stream.write(words + "\n")
        self._stream.flush()

    def _end(self, event: Event) -> None:
        if event.kind == "finished":
            self._line(f"finished in {event.seconds:.0f} s")
        elif event.kind == "cancelled":
            self._line(f"cancelled at step {event.step}. {event.kept}".rstrip())
        elif event.kind == "paused":
            self._line(f"paused at step {event.step}. {event.kept}".rstrip())
        elif event.kind == "failed":
            self._line("lora-studio: " + " ".join(part for part in (event.message, event.remedy, event.kept) if part))
