"""A studio on a disk that fills up: `python -m tests.faults.full_disk DATA PLACE...` in a mount of a few megabytes, see test_full_disk.py.

The disk is filled to the last byte at a place in the work, so that what comes next finds no room: in the cache, in a checkpoint, in
an event, in the exported file, in the database. Each time the job ends with one sentence that has numbers in it, what was saved
before is whole, and after room was made it goes on to its end.
"""

import os
import re
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch

from studio import killpoints
from studio.config import TrainConfig, build
from studio.errors import StudioError
from studio.jobs import worker
from studio.jobs.devices import Device
from studio.jobs.folder import JobFolder
from studio.jobs.queue import Dispatcher
from studio.training import checkpoint
from studio.workspace import Workspace
from studio.workspace.records import JobRecord
from tests.faults import invariants
from tests.jobs import node
from tests.jobs.conftest import SHORT, draw_pictures

RUN = {**SHORT, "steps": 4, "save_every": 2, "rank": 2}


class Disk:
    """Fills up at a place of `killpoints`, the n-th time it is reached."""

    def __init__(self, ballast: Path) -> None:
        self._ballast = ballast
        self._place, self._left = "", 0

    def fill_at(self, place: str, times: int) -> None:
        self._place, self._left = place, times

    def reached(self, name: str) -> None:
        if name == self._place:
            self._left -= 1
            if self._left == 0:
                self.fill()

    def fill(self) -> None:
        for piece in (2**16, 4096, 1):
            with open(self._ballast, "ab", buffering=0) as file:
                try:
                    while file.write(bytes(piece)) == piece:
                        pass
                except OSError:
                    continue

    def make_room(self) -> None:
        self._place = ""
        self._ballast.unlink(missing_ok=True)

    @property
    def full(self) -> bool:
        return self._ballast.exists()


class House:
    """The studio, with its worker in this process: a worker that ends is made anew, as the dispatcher would start one."""

    def __init__(self, data: Path) -> None:
        self.studio = Workspace.open(data)
        self.disk = Disk(data / "ballast")
        self.queue = Dispatcher(self.studio._db, self.studio.layout, lambda: [Device("cpu", "processor")])
        assert self.queue.try_lead()
        self.worker = worker.Worker(self.studio.layout, "cpu")
        self.worker._note()
        original = killpoints.reached
        for module in list(sys.modules.values()):
            if getattr(module, "reached", None) is original:
                module.reached = self.disk.reached  # type: ignore[attr-defined]

    def run(self, id: str) -> JobRecord:
        """Hand a job out, work on it, take in what it said."""
        for _ in range(3):
            self._tick()
            for waiting in self.worker._home.waiting():
                try:
                    self.worker._take([waiting])
                except OSError:  # the process would end here
                    self.worker = worker.Worker(self.studio.layout, "cpu")
        return self.studio.jobs.show(id)

    def _tick(self) -> None:
        try:
            self.queue.tick()
        except StudioError as error:
            assert self.disk.full and "full" in str(error) and "\n" not in str(error), error


def told(job: JobRecord) -> None:
    """Ended, and one sentence says why with how much is free, what to do, and what is kept."""
    assert job.state in ("failed", "interrupted"), (job.state, job.message)
    assert re.search(r"No space left|disk is full", job.message) and re.search(r"\d MB free", job.message), job.message
    assert "free some space" in job.remedy and "\n" not in job.message + job.remedy, job.remedy
    print(f"  {job.message} | {job.remedy} | {job.kept}")


def training(house: House, place: str, times: int, name: str, **more: int) -> None:
    """A training whose disk fills up there."""
    id = house.studio.jobs.train(build(TrainConfig, {**RUN, "name": name, "trigger": name, **more})).id
    folder = JobFolder(house.studio.layout.jobs / id)
    house.disk.fill_at(place, times)
    house.run(id)
    assert house.disk.full, f"{place} was not reached: {house.studio.jobs.show(id).message}"
    assert folder.read()[0][-1].kind == "failed", "the last word found its room"
    house.disk.make_room()
    told(house.run(id))  # the row may have had to wait for room of its own
    job, before = house.studio.jobs.show(id), folder.checkpoints()
    for saved in before:
        assert checkpoint.verify(folder.path / saved.path).sha256 == saved.sha256
    assert bool(job.kept) == bool(before)
    again = house.studio.jobs.resume(id).id if before else house.studio.jobs.retry(id).id
    done = house.run(again)
    assert done.state == "finished", done.message
    assert len([row for row in house.studio.library.list() if row.run == again]) == 1


def database(house: House) -> None:
    """No room for a row: refused with nothing left behind, reading goes on, and room made is used."""
    studio = house.studio
    waits = studio.jobs.submit(node.manifest("waits")).id
    house.disk.fill()
    before = sorted(path.name for path in studio.layout.jobs.iterdir())
    refusals: list[Callable[[], object]] = [
        lambda: studio.jobs.submit(node.manifest("refused")),
        lambda: studio.jobs.prioritise(waits, 3),
        lambda: studio.sets.create("refused"),
        lambda: studio.sets.import_folder("refused", Path(studio.layout.root.parent / "circles")),
    ]
    said = []
    for act in refusals:
        try:
            act()
        except StudioError as error:
            said.append(str(error))
    print("  " + " | ".join(dict.fromkeys(said)))
    assert len(said) >= 3 and all("full" in words and "\n" not in words for words in said), said  # a change in place may find room in the last page
    assert sorted(path.name for path in studio.layout.jobs.iterdir()) == before
    assert [row.id for row in studio.jobs.queue()] == [waits] and studio.status().queued == 1  # whoever looks still sees
    house.disk.make_room()
    with closing(sqlite3.connect(studio.layout.database)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert studio.jobs.cancel(waits).state == "cancelled"
    assert "refused" not in [row.name for row in studio.sets.list()]


def main(data: Path, places: list[str]) -> None:
    torch.set_num_threads(1)
    house = House(data)
    house.studio.sets.import_folder("Circles", draw_pictures(data.parent / "circles", 3))
    database(house)
    for wish in places:
        print(f"full at {wish}")
        place, _, times = wish.partition(":")
        # Some 4 kB of events, so that the page in which they begin does not do
        training(house, place, int(times), wish.replace(":", ""), **({"steps": 50, "save_every": 0} if place == "event-step" else {}))
    house.queue._lock.release()
    invariants.check(house.studio)
    print("survived")


if __name__ == "__main__":
    os.umask(0o077)
    main(Path(sys.argv[1]), sys.argv[2:])
