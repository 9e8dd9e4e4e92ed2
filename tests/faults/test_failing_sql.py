"""The n-th SQL statement or commit fails, once, from then on, or with its answer lost, until a run meets no failure.

Paths: submitting, handing out and following a job, taking what it made into library and gallery, importing, deleting, restoring,
setting rows right at the start, migrating. What was acknowledged is there, what was refused is not, and nothing happens twice.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as Pillow
from safetensors.torch import load_file, save_file

from studio.errors import StudioError
from studio.events import Event, Exported, Finished, Image, Loading, Started, Step
from studio.jobs import worker
from studio.jobs.exporting import publish
from studio.jobs.folder import JobFolder
from studio.jobs.handlers import Work
from studio.jobs.processes import WorkerFolder
from studio.library.database import Database, revision
from studio.metadata import read_header
from tests.faults import invariants
from tests.faults.sql import REASONS, Calls, Dialect, Mode, failing_sql
from tests.faults.test_failing_calls import adapter
from tests.jobs import node
from tests.jobs.conftest import draw_pictures
from tests.jobs.house import House

RAN = node.RAN
ROUNDS = 5  # of the dispatcher while calls fail
MODES: tuple[Mode, ...] = ("once", "lasting", "answer lost")


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    made = tmp_path / "made.safetensors"
    publish(adapter(0.1), made, "kohya", "fp16", {})

    def makes_things(work: Work) -> Iterator[Event]:
        """A job that leaves a LoRA and a picture, and notes that it ran."""
        yield Loading(phase="starting")
        with open(work.folder.path / RAN, "a") as file:
            file.write("ran\n")
        yield Started(total=1)
        yield Step(step=1, total=1, loss=0.5)
        for name in ("output", "images"):
            (work.folder.path / name).mkdir()
        shutil.copy(made, work.folder.path / "output" / "made.safetensors")
        Pillow.new("RGB", (8, 8)).save(work.folder.path / "images" / "0.png")
        yield Image(path="images/0.png", index=0, seed=1)
        yield Exported(path="output/made.safetensors")
        yield Finished(step=1)

    monkeypatch.setitem(worker.ALL_HANDLERS, node.KIND, makes_things)
    monkeypatch.setattr("studio.jobs.handlers.Warm.free", lambda self: None)  # nothing is loaded, and collecting garbage takes its time
    found = House(tmp_path / "data")
    found.open()
    assert found.queue.try_lead()
    yield found
    found.close()


def every_call(
    monkeypatch: pytest.MonkeyPatch, mode: Mode, act: Callable[[int], object], stride: int = 1, prepare: Callable[[int], object] = lambda n: None
) -> Iterator[tuple[int, Calls, object]]:
    """Run `act` with its first, second, ... call failing until it meets no failure; what it returned, or raised as StudioError."""
    number = 1
    while True:
        prepare(number)
        reason = "disk I/O error" if mode == "answer lost" else REASONS[number % len(REASONS)]  # a lock is met before anything is written
        with failing_sql(monkeypatch, number, mode, reason) as calls:
            outcome: object
            try:
                outcome = act(number)
            except StudioError as error:
                assert "\n" not in str(error)
                outcome = error
        yield number, calls, outcome
        if not calls.failed:
            return
        number += stride


@pytest.mark.parametrize("mode", MODES)
def test_a_job_is_run_once_and_kept_whichever_statement_fails(house: House, monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    """From submitting to the adapter in the library and the picture in the gallery."""
    acknowledged: list[str] = []

    def whole_life(number: int) -> str:
        refusal = ""
        try:
            acknowledged.append(house.studio.jobs.submit(node.manifest(f"job-{number}")).id)
        except StudioError as error:
            refusal = str(error)
        for _ in range(ROUNDS):
            told = house.round()
            assert "\n" not in told
        return refusal

    for number, calls, refusal in every_call(monkeypatch, mode, whole_life):
        assert calls.failed or refusal == ""
        house.until_idle()
        if number % 10 == 0:
            house.reopen()
    house.reopen()
    house.until_idle()
    rows = {row.id: row for row in house.studio.jobs.list(limit=500)}
    assert set(acknowledged) == set(rows), "what was acknowledged is there, what was refused is not"
    for id in acknowledged:
        assert rows[id].state == "finished", rows[id].message
        assert (house.studio.layout.jobs / id / RAN).read_text() == "ran\n", "twice"
        assert [event.kind for event in JobFolder(house.studio.layout.jobs / id).read()[0]].count("finished") == 1
    assert sorted(row.id for row in house.studio.library.list(limit=500)) == sorted(f"{id}-1" for id in acknowledged)
    assert sorted(row.id for row in house.studio.gallery.list(limit=500)) == sorted(f"{id}-1-0000" for id in acknowledged)
    assert all("troubles" not in row.result for row in rows.values())
    invariants.check(house.studio)


@pytest.mark.parametrize("mode", MODES)
def test_an_import_is_whole_or_not_there_whichever_statement_fails(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    pictures = draw_pictures(tmp_path / "circles", 2)
    accepted = []
    for number, _, outcome in every_call(monkeypatch, mode, lambda n: house.studio.sets.import_folder(f"set-{n}", pictures)):
        if not isinstance(outcome, StudioError):
            accepted.append(f"set-{number}")
        house.reopen()
        assert sorted(row.name for row in house.studio.sets.list() if not row.builtin) == sorted(accepted), number
        assert len([path for path in house.studio.layout.sets.iterdir() if not path.name.startswith(".")]) == len(accepted)
    invariants.check(house.studio)


@pytest.mark.parametrize("mode", MODES)
def test_a_lora_is_added_whole_or_not_at_all(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    file = tmp_path / "mine.safetensors"
    accepted = []

    publish(adapter(0.1), file, "kohya", "fp16", {})
    tensors, words = load_file(file), read_header(file).metadata

    def another(number: int) -> None:
        save_file(tensors, file, {**words, "number": str(number)})

    for number, _, outcome in every_call(monkeypatch, mode, lambda n: house.studio.library.add(file, f"lora-{n}"), prepare=another):
        if not isinstance(outcome, StudioError):
            accepted.append(f"lora-{number}")
        house.reopen()
        assert sorted(row.name for row in house.studio.library.list()) == sorted(accepted), number
        invariants.check(house.studio)


@pytest.mark.parametrize("kind", ["jobs", "library", "gallery", "sets"])
@pytest.mark.parametrize("mode", MODES)
def test_deleting_and_restoring_keep_files_and_rows_together(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode, kind: str) -> None:
    """Whoever is told that it failed finds the thing where it was, and whoever is told that it worked where it was to go."""
    house.studio.jobs.submit(node.manifest("job"))
    house.until_idle()
    house.studio.sets.import_folder("set", draw_pictures(tmp_path / "circles", 2))

    def room() -> Any:
        return getattr(house.studio, kind)

    def listed() -> bool:
        house.reopen()
        invariants.check(house.studio)
        return id in [row.id for row in room().list()]

    id, token = room().list()[0].id, ""
    for number, calls, outcome in every_call(monkeypatch, mode, lambda n: room().remove(id)):
        refused = isinstance(outcome, StudioError)
        assert listed() == refused, (number, calls.seen)
        if not refused:
            token = str(outcome)
            break
    for number, calls, outcome in every_call(monkeypatch, mode, lambda n: room().restore(token)):
        there = listed()
        assert there or isinstance(outcome, StudioError), (number, calls.seen)
        if there:
            break
    assert there


@pytest.mark.parametrize("mode", MODES)
def test_setting_rows_right_can_be_broken_off_anywhere(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    """Folders without rows, rows without folders, a removal cut short: taken over again, all is right."""
    for name in ("kept", "lost"):
        house.studio.jobs.submit(node.manifest(name))
    house.until_idle()
    house.studio.sets.import_folder("set", draw_pictures(tmp_path / "circles", 2))
    sound = tmp_path / "sound"
    house.close()
    shutil.copytree(house.data, sound)
    with contextlib.closing(Database.open(f"sqlite:///{sound / 'studio.db'}")) as db, db.write() as session:
        tables = [session.connection().exec_driver_sql(f"SELECT id FROM {name} ORDER BY id").scalars().all() for name in ("jobs", "adapters", "images")]
        jobs, adapters, pictures = ([str(id) for id in table] for table in tables)
        for statement in (f"DELETE FROM jobs WHERE id = '{jobs[0]}'", f"DELETE FROM adapters WHERE id = '{adapters[0]}'", "DELETE FROM image_sets"):
            session.connection().exec_driver_sql(statement)
    shutil.rmtree(sound / "jobs" / jobs[1])
    shutil.rmtree(sound / "adapters" / adapters[1])
    next(sound.glob(f"images/*/{pictures[1]}.png")).unlink()
    house.open()
    house.close()

    def prepare(number: int) -> None:
        house.close()
        shutil.rmtree(house.data)
        shutil.copytree(sound, house.data)
        house.open()

    for number, calls, outcome in every_call(monkeypatch, mode, lambda n: house.queue.try_lead(), prepare=prepare):
        assert calls.failed == isinstance(outcome, StudioError) and house.queue.leads == (not calls.failed), (number, calls.seen)
        assert house.queue.try_lead()
        house.until_idle()
        assert [row.id for row in house.studio.jobs.list()] == [jobs[0]] and house.studio.jobs.show(jobs[0]).state == "finished"
        assert [row.id for row in house.studio.library.list()] == [adapters[0]] and [row.id for row in house.studio.gallery.list()] == [pictures[0]]
        assert [row.name for row in house.studio.sets.list() if not row.builtin] == ["set"]
        assert (house.studio.layout.jobs / jobs[0] / RAN).read_text() == "ran\n"
        invariants.check(house.studio)


@pytest.mark.parametrize("mode", MODES)
def test_a_migration_that_fails_leaves_the_older_or_the_newest_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    def opened(number: int) -> Database:
        return Database.open(f"sqlite:///{tmp_path / f'{number}.db'}")

    def newest(number: int) -> str | None:
        with contextlib.closing(opened(number)) as db:
            return revision(db.engine)

    for number, calls, outcome in every_call(monkeypatch, mode, opened, stride=3):
        assert calls.failed == isinstance(outcome, StudioError), (number, outcome)
        assert newest(number) and newest(number) == newest(0)


def test_a_commit_that_is_lost_is_a_negative_control(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above see a row that goes missing: a commit that is silently rolled back turns them red."""
    with monkeypatch.context() as patch:
        patch.setattr(Dialect, "do_commit", lambda self, connection: connection.rollback())
        house.studio.jobs.submit(node.manifest("gone"))
    with pytest.raises(AssertionError, match="I4"):
        invariants.check(house.studio)


@pytest.mark.parametrize("text", ["CUDA error: unspecified launch failure", "CUDA error: an illegal memory access was encountered"])
def test_a_worker_that_lost_its_device_ends_and_the_next_job_gets_a_new_one(house: House, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    sound, broken = worker.ALL_HANDLERS[node.KIND], [True]

    def breaks(work: Work) -> Iterator[Event]:
        if broken.pop() if broken else False:
            raise torch.AcceleratorError(text)
        yield from sound(work)

    monkeypatch.setitem(worker.ALL_HANDLERS, node.KIND, breaks)
    first, second = (house.studio.jobs.submit(node.manifest(name)).id for name in ("first", "second"))
    house.queue.tick()
    home = WorkerFolder(house.studio.layout.workers, "cpu")
    home.hand(second, ["cpu"])  # it lies in the inbox already when the device is lost
    house.worker.run(idle_seconds=60.0)  # and is not touched any more
    assert home.waiting() == [second]
    house.queue.tick()
    job = house.studio.jobs.show(first)
    assert job.state == "failed" and text.partition(": ")[2] in job.message and "new process" in job.message and "retry" in job.remedy
    home.take_back(second)
    house.worker = worker.Worker(house.studio.layout, "cpu")
    house.worker._note()
    house.until_idle()
    assert house.studio.jobs.show(second).state == "finished"


def test_running_out_of_memory_costs_no_worker(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: an error that leaves the device in order."""

    def breaks(work: Work) -> Iterator[Event]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        yield

    monkeypatch.setitem(worker.ALL_HANDLERS, node.KIND, breaks)
    id = house.studio.jobs.submit(node.manifest("large")).id
    house.round()
    house.round()
    assert house.studio.jobs.show(id).state == "failed" and not house.worker._leaving
