"""Why a job ended, in words for people."""

import errno
from pathlib import Path

import pytest

from studio.errors import FormatError
from studio.events import CancelledEvent, Checkpoint, Event, Loading, Started, Step
from studio.jobs.failures import explain, lower_setting, worker_died
from studio.jobs.folder import FolderRequests
from studio.jobs.worker import stoppable

KEPT = [Checkpoint(step=200, path="c", adapter="c/a", sha256="0", bytes=1)]


class OutOfMemoryError(RuntimeError):
    """Named as torch's, which is known by its name."""


def test_every_failure_is_one_sentence_with_a_way_out_and_what_was_kept(tmp_path: Path) -> None:
    memory = explain(OutOfMemoryError("CUDA out of memory"), {"batch_size": 4, "gradient_accumulation": 1}, tmp_path, KEPT)
    assert "batch_size to 2 with gradient_accumulation 2" in memory.remedy and "step 200" in memory.kept
    main = explain(MemoryError(), {"resolution": 1024, "gradient_checkpointing": True, "block_offload": 0.5}, tmp_path, [])
    assert "resolution to 768" in main.remedy, "blocks that wait take more main memory, not less"
    full = explain(OSError(errno.ENOSPC, "No space left"), {}, tmp_path, KEPT)
    assert "disk is full" in full.message and "resume" in full.remedy
    ours = explain(FormatError("x is no LoRA; take another"), {}, tmp_path, [])
    assert (ours.message, ours.error, ours.kept) == ("x is no LoRA; take another", "FormatError", "")
    strange = explain(ZeroDivisionError("division\nby zero"), {}, tmp_path, [])
    assert strange.message == "ZeroDivisionError: division" and "log.txt" in strange.remedy


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 3, "gradient_accumulation": 2}, "batch_size to 1 with gradient_accumulation 6"),
        ({"batch_size": 1, "resolution": 1024, "gradient_checkpointing": False}, "gradient_checkpointing on"),
        ({"batch_size": 1, "resolution": 1024, "gradient_checkpointing": True}, "resolution to 768"),
        ({"batch_size": 1, "resolution": 1024, "gradient_checkpointing": True, "block_offload": None}, "block_offload to 0.5"),
        ({"batch_size": 1, "resolution": 1024, "gradient_checkpointing": True, "block_offload": 0.7}, "block_offload to 1;"),
        ({"batch_size": 1, "resolution": 1024, "gradient_checkpointing": True, "block_offload": 1.0}, "resolution to 768"),
        ({"batch_size": 1, "resolution": 1024, "gradient_checkpointing": True, "block_offload": 0.0, "fp8_products": True}, "resolution to 768"),
        ({"batch_size": 1, "resolution": 512, "gradient_checkpointing": True, "rank": 32}, "rank to 16"),
        ({"width": 2048, "height": 1024}, "1536x768"),
    ],
)
def test_the_lower_setting_is_concrete(settings: dict[str, int], words: str) -> None:
    assert words in lower_setting(settings)


def test_a_kill_by_the_system_is_told_apart() -> None:
    assert "memory ran out" in worker_died(-9, [])[0]
    assert "unexpectedly" in worker_died(None, [])[0] and worker_died(None, KEPT)[1] == "resume goes on from there"


def test_a_cancel_ends_an_engine_that_does_not_look(tmp_path: Path) -> None:
    from studio.errors import Cancelled

    (tmp_path / "requests").mkdir()
    requests = FolderRequests(tmp_path)
    closed = []

    def engine() -> "object":
        try:
            yield Loading(phase="x")
            yield Started(total=100)
            for step in range(1, 101):
                yield Step(step=step, total=100)
        finally:
            closed.append(True)

    seen: list[Event] = []
    with pytest.raises(Cancelled):
        for event in stoppable(engine(), requests):  # type: ignore[arg-type]
            seen.append(event)
            if isinstance(event, Step) and event.step == 5:
                (tmp_path / "requests" / "cancel").touch()
    assert isinstance(seen[-1], Step) and seen[-1].step < 10 and closed

    loading = (Loading(phase=str(i)) for i in range(100))
    with pytest.raises(Cancelled):
        assert len(list(stoppable(loading, requests))) < 2
    told = [CancelledEvent()]
    assert list(stoppable(iter(told), requests)) == told
    (tmp_path / "requests" / "sample").touch()
    assert requests.pending() == {"cancel", "sample"} and requests.pending() == {"cancel"}
