import threading
import time

import pytest

from studio.generation.steps import Turns


def test_values_come_one_by_one_and_the_result_after_them() -> None:
    done = []

    def call(report) -> str:
        for i in range(3):
            done.append(i)
            report(i)
        return "end"

    turns: Turns[int, str] = Turns(call)
    seen = []
    for value in turns:
        seen.append(value)
        time.sleep(0.02)
        assert done == seen, "the call waits while its value is looked at"
    assert (seen, turns.result) == ([0, 1, 2], "end")


def test_what_the_call_raises_is_raised_here() -> None:
    def call(report) -> None:
        report(1)
        raise ValueError("torn")

    turns = iter(Turns(call))
    assert next(turns) == 1
    with pytest.raises(ValueError, match="torn"):
        next(turns)


def test_closing_ends_the_call_and_runs_its_cleanup() -> None:
    ended = threading.Event()
    steps = []

    def call(report) -> None:
        try:
            for i in range(100):
                steps.append(i)
                report(i)
        finally:
            ended.set()

    turns = iter(Turns(call))
    next(turns)
    next(turns)
    turns.close()  # type: ignore[attr-defined]
    assert ended.is_set() and steps == [0, 1]
    assert not [thread for thread in threading.enumerate() if thread.name == "denoising"]
