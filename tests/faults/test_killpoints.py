"""A worker killed at every place where it matters: nothing acknowledged is lost, and going on ends in the same bytes."""

import pytest

from tests.faults import invariants
from tests.faults.conftest import Ground

PLACES = [
    "claim:1",
    "event-loading:1",
    "cache:1",
    "cache:5",
    "load:1",
    "event-started:1",
    "batch:1",
    "batch:2",
    "batch:6",
    "update:1",
    "update:3",
    "event-step:3",
    "checkpoint-file:1",
    "checkpoint-file:2",
    "checkpoint-file:3",
    "checkpoint-file:4",
    "checkpoint-file:6",
    "checkpoint-file:7",
    "checkpoint-rename:2",
    "checkpoint-named:1",
    "checkpoint-named:3",
    "event-checkpoint:2",
    "checkpoint-thin:1",
    "export:1",
    "exported:1",
    "event-exported:1",
    "event-finished:1",
]
CI = {"cache:5", "update:3", "checkpoint-file:6", "event-exported:1"}


@pytest.mark.parametrize("place", [pytest.param(place, marks=() if place in CI else pytest.mark.long) for place in PLACES])
def test_a_worker_killed_anywhere_loses_nothing(ground: Ground, unbroken: dict[str, bytes], place: str) -> None:
    ground.kill_at = place
    id = ground.train()
    ground.until(lambda: bool(ground.workers) and ground.workers[0].poll() is not None)
    assert ground.workers[0].poll() == -9, f"{place} was never reached"
    id = ground.recover(id)
    assert invariants.result(ground.studio, id) == unbroken, "I7"
