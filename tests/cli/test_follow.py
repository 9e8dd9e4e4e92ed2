"""How a job's end becomes an exit code, and its events lines."""

import io

import pytest

from studio.cli.follow import Display, exit_code
from studio.events import CancelledEvent, Checkpoint, Event, Failed, Finished, Loading, Step, Warned


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (Finished(), 0),
        (CancelledEvent(), 130),
        (Failed(message="out of memory", error="RunError"), 3),
        (Failed(message="a bug", error="StudioError"), 3),
        (Failed(message="not a picture", error="ImageError"), 2),
        (Failed(message="wrong base", error="FormatError"), 2),
        (Failed(message="odd", error="__doc__"), 3),
    ],
)
def test_the_end_of_a_job_decides_the_exit_code(event: Event, code: int) -> None:
    assert exit_code(event, 0) == code


def test_a_step_leaves_the_code_as_it_was() -> None:
    assert exit_code(Step(step=1, total=2), 3) == 3


def shown(*events: Event) -> list[str]:
    stream = io.StringIO()
    display = Display(stream)
    for event in events:
        display.show(event)
    return stream.getvalue().splitlines()


def test_without_a_terminal_steps_are_few_and_the_last_is_there() -> None:
    lines = shown(*(Step(step=i, total=200, loss=0.5, seconds=0.1) for i in range(1, 201)))
    assert len(lines) <= 2
    assert lines[-1].startswith("step 200/200  loss 0.5000  10.0 steps/s")


def test_phases_notes_and_the_way_out_are_told() -> None:
    lines = shown(
        Loading(phase="encoding pictures", done=1, total=4),
        Warned(message="2 pictures are small"),
        Checkpoint(step=5, path="c", adapter="a", sha256="", bytes=2_000_000),
        Failed(message="Out of memory.", remedy="Take a smaller batch.", kept="The checkpoint of step 5 is there."),
    )
    assert lines == [
        "encoding pictures 1/4",
        "note: 2 pictures are small",
        "checkpoint at step 5, 2 MB",
        "lora-studio: Out of memory. Take a smaller batch. The checkpoint of step 5 is there.",
    ]
