"""Work on the next few of many things while the present one is in use."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")
WORKERS = 4
AHEAD = 8  # things in the making at most


@contextmanager
def ahead(items: Iterable[Item], make: Callable[[Item], Made]) -> Iterator[Iterator[tuple[Item, Made]]]:
    """The items in order, each with what is made of it by a few threads; they begin at once. What a thread raises is raised at its item."""
    source = iter(items)
    coming: deque[tuple[Item, Future[Made]]] = deque()
    pool = ThreadPoolExecutor(WORKERS)

    def send(n: int) -> None:
        for item in islice(source, n):
            coming.append((item, pool.submit(make, item)))

    def each() -> Iterator[tuple[Item, Made]]:
        while coming:
            item, future = coming.popleft()
            send(1)
            yield item, future.result()

    try:
        send(AHEAD)
        yield each()
    finally:
        pool.shutdown(cancel_futures=True)
