"""A blocking call that reports as it goes, turned into a generator: one step of it, one value, in turns."""

import threading
from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Report = Callable[[T], None]


class _Stop(BaseException):
    """Raised inside the call when nobody wants its result any more. Not an Exception, so that no library holds on to it."""


class Turns(Generic[T, R]):
    """Iterate to run `call(report)` in a thread of its own: it pauses in every `report(value)` until the next value is asked for.

    Closing the iterator ends the call at its next report. `result` is there when the iteration is over; what the call raises is raised
    from the iteration.
    """

    result: R

    def __init__(self, call: Callable[[Report[T]], R]):
        self._call = call

    def __iter__(self) -> Generator[T, None, None]:
        told: SimpleQueue[tuple[str, T | R | BaseException]] = SimpleQueue()
        turn: SimpleQueue[bool] = SimpleQueue()

        def report(value: T) -> None:
            told.put(("value", value))
            if not turn.get():
                raise _Stop

        def run() -> None:
            try:
                told.put(("result", self._call(report)))
            except BaseException as error:  # handed to the iterating thread, which raises it
                told.put(("error", error))

        thread = threading.Thread(target=run, name="denoising", daemon=True)
        thread.start()
        ended = False
        try:
            while True:
                kind, value = told.get()
                ended = kind != "value"
                if kind == "error":
                    assert isinstance(value, BaseException)
                    raise value
                if kind == "result":
                    self.result = value  # type: ignore[assignment]
                    return
                yield value  # type: ignore[misc]
                turn.put(True)
        finally:
            if not ended:
                turn.put(False)
            thread.join()
