"""The table of steps on smaller cards, on a demo base."""

import json

import pytest

from studio.bench import smallcards
from studio.bench.fullsize import Start
from studio.events import Loading, Started, Step


def test_rows_of_one_base_begin_with_the_same_losses_and_a_row_that_fails_says_why(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    measure = smallcards.measure

    def failing(row: smallcards.Row, *given) -> dict:
        if row.cap:
            raise RuntimeError("CUDA out of memory.\nTried to allocate")
        return measure(row, *given)

    monkeypatch.setattr(smallcards, "measure", failing)
    smallcards.main(["sdxl:64:full:0:graph:0", "sdxl:64:full:0.5:graph:0:0.5", "sdxl:64:full:1:eager:8", "--weights", "demo", "--steps", "1"])
    plain, waits, fails = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"family"')]
    assert plain["losses"] == waits["losses"] and plain["waiting_gib"] == 0 < waits["waiting_gib"]
    assert waits["recomputed"] == 0.5 and waits["seconds"] > 0
    assert fails["error"] == "CUDA out of memory. Tried to allocate"


def test_the_seconds_before_the_first_step_are_told_by_phase() -> None:
    start = Start()
    for event in (
        Loading(phase="Reading captions", done=0, total=2),
        Loading(phase="Reading captions", done=2, total=2),
        Started(step=0, total=2, settings={}, facts={}),
        Step(step=1, total=2, loss=1.0, learning_rate=1e-4, seconds=1.0),
        Step(step=2, total=2, loss=1.0, learning_rate=1e-4, seconds=1.0),
    ):
        start.hear(event)
    told = start.told()
    assert list(told["start_phases"]) == ["settling", "Reading captions", "first step"] and told["start_host_gib"] > 0
    assert told["start_seconds"] == pytest.approx(sum(start.seconds.values()), abs=0.01)
