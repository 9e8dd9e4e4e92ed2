"""Numbered messages for watchers."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from studio.workspace.hub import Hub


def test_everyone_gets_each_message_once_and_in_order() -> None:
    hub = Hub()
    for i in range(5):
        hub.publish("j", event={"i": i})
    first = hub.since(0)
    assert [message["event"]["i"] for message in first] == list(range(5))
    assert hub.since(first[-1]["seq"]) == [] and [m["seq"] for m in hub.since(3)] == [4, 5]


def test_numbers_that_are_gone_or_of_another_process_ask_for_a_reload() -> None:
    hub = Hub(keep=3)
    for _ in range(10):
        hub.publish("j")
    assert hub.since(2) == [{"seq": 10, "job": "", "reset": True}]
    assert hub.since(99)[0]["reset"]
    assert [m["seq"] for m in hub.since(7)] == [8, 9, 10]


def test_waiting_ends_with_the_first_message_from_another_thread() -> None:
    hub = Hub()

    async def watch() -> list[dict[str, object]]:
        threading.Timer(0.1, lambda: hub.publish("j", event={})).start()
        return await hub.wait(0, timeout=60)  # nothing is returned should it take so long

    # A thread of its own: a browser test in the same process leaves an event loop running in this one.
    with ThreadPoolExecutor(1) as own:
        assert [m["seq"] for m in own.submit(asyncio.run, watch()).result()] == [1]
        assert own.submit(asyncio.run, hub.wait(1, timeout=0.05)).result() == []
