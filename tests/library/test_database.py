"""The schema, its migrations, and how SQLite is opened."""

import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, String, create_engine, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from studio.errors import StudioError
from studio.library.database import MIGRATIONS, Database, migrate, revision
from studio.library.ids import new_id
from studio.library.models import BaseRow, Table
from tests.postgres import server


def row(name: str) -> BaseRow:
    return BaseRow(name=name, path="/x", family="sdxl", bytes=1, added=1.0)


def opened(path: Path) -> Database:
    return Database.open(f"sqlite:///{path}", path.with_suffix(".lock"))


def differences(connection: Connection) -> list[Any]:
    """What the tables lack or have too much. SQLite keeps the length that a text column was made with, and never looks at it."""

    def texts(context: Any, column: Any, declared: Any, found: Any, meant: Any) -> bool | None:
        alike = connection.dialect.name == "sqlite" and isinstance(found, String) and isinstance(meant, String)
        return False if alike else None

    return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": texts}), Table.metadata)


def test_migrations_from_nothing_make_exactly_the_models(database_url: str) -> None:
    db = Database.open(database_url)
    with db.engine.connect() as connection:
        assert differences(connection) == []
        connection.execute(text("ALTER TABLE bases ADD COLUMN extra TEXT"))
        assert differences(connection) != []


def test_migrations_go_back_and_forth(database_url: str) -> None:
    from alembic import command
    from alembic.config import Config

    db = Database.open(database_url)
    settings = Config()
    settings.set_main_option("script_location", str(MIGRATIONS))
    settings.set_main_option("path_separator", "os")
    with db.engine.execution_options(studio_write=True).begin() as connection:
        settings.attributes["connection"] = connection
        command.downgrade(settings, "0001")
    assert revision(db.engine) == "0001"
    migrate(db.engine)
    with db.engine.connect() as connection:
        assert differences(connection) == []
    db.close()


def test_opening_again_keeps_rows_and_a_newer_schema_is_refused(database_url: str) -> None:
    db = Database.open(database_url)
    with db.write() as session:
        session.add(row("one"))
    db.close()
    again = Database.open(database_url)
    with again.read() as session:
        assert session.get(BaseRow, "one") is not None
    with again.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = 'later'"))
    again.close()
    with pytest.raises(StudioError, match="newer LoRA Studio"):
        Database.open(database_url)


def test_sqlite_is_opened_for_safety_and_a_failed_block_writes_nothing(tmp_path: Path) -> None:
    db = opened(tmp_path / "a.db")
    with db.engine.connect() as connection:
        settings = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")]
    assert settings == ["wal", 2, 1, 5000]
    with pytest.raises(RuntimeError), db.write() as session:
        session.add(row("half"))
        session.flush()
        raise RuntimeError
    with db.read() as session:
        assert session.get(BaseRow, "half") is None


def test_writers_in_many_threads_wait_for_each_other(database_url: str) -> None:
    db = Database.open(database_url)

    def write(i: int) -> None:
        for j in range(20):
            with db.write() as session:
                session.scalars(select(BaseRow)).all()  # reads first: the case in which a deferred transaction fails
                session.add(row(f"{i}-{j}"))

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.read() as session:
        assert len(session.scalars(select(BaseRow)).all()) == 80
    db.close()


def test_many_processes_that_open_a_new_database_migrate_it_once(database_url: str, tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from studio.library.database import Database; Database.open(sys.argv[1], Path(sys.argv[2])).close()"
    for _ in range(2):  # the second time it is there
        begun = [subprocess.Popen([sys.executable, "-c", script, database_url, str(tmp_path / "lock")]) for _ in range(4)]
        assert [process.wait(timeout=60) for process in begun] == [0] * 4


def test_a_writer_waits_for_another_program_that_writes_for_three_seconds(tmp_path: Path) -> None:
    db = opened(tmp_path / "a.db")
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(3.0, lambda: other.execute("COMMIT"))
    timer.start()
    began = time.monotonic()
    with db.write() as session:
        session.add(row("late"))
    assert time.monotonic() - began > 2.5
    with db.read() as session:
        assert session.get(BaseRow, "late") is not None
    timer.join()
    other.close()


def test_a_database_that_stays_locked_is_one_line_and_readers_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.library.database.BUSY_SECONDS", 0.5)
    db = opened(tmp_path / "a.db")
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StudioError) as told, db.write() as session:
        session.add(row("never"))
    assert "locked by another program" in str(told.value) and "\n" not in str(told.value)
    with db.read() as session:
        assert session.scalars(select(BaseRow)).all() == []
    other.execute("ROLLBACK")
    with db.write() as session:
        session.add(row("now"))
    other.close()


def test_a_server_that_goes_away_is_one_line_and_found_again_when_it_is_back() -> None:
    with server() as started:
        db = Database.open(started.database())
        with db.write() as session:
            session.add(row("kept"))
        with pytest.raises(StudioError, match="does not answer") as told, db.write() as session:
            session.add(row("lost"))
            session.flush()
            started.restart()
            session.add(row("lost too"))
        assert "\n" not in str(told.value)
        with db.read() as session:
            assert [found.name for found in session.scalars(select(BaseRow))] == ["kept"]
        db.close()


@pytest.mark.parametrize("url", ["nonsense", "martian://x/y", "postgresql://studio@/x?host=/nowhere"])
def test_an_address_that_leads_nowhere_is_one_line(url: str) -> None:
    with pytest.raises(StudioError) as told:
        Database.open(url)
    assert "database" in str(told.value) and "\n" not in str(told.value)


def test_an_unreadable_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.db").mkdir()
    with pytest.raises(StudioError, match="cannot be opened"):
        opened(tmp_path / "a.db")


def test_the_tables_are_portable() -> None:
    for table in Table.metadata.sorted_tables:
        for statement in (CreateTable(table), *(CreateIndex(index) for index in table.indexes)):
            assert str(statement.compile(dialect=postgresql.dialect()))


def test_an_empty_database_has_no_revision(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "e.db").close()
    assert revision(create_engine(f"sqlite:///{tmp_path / 'e.db'}")) is None


def test_ids_sort_by_the_moment_they_were_drawn() -> None:
    drawn = [new_id() for _ in range(500)]
    assert drawn == sorted(drawn) and len(set(drawn)) == 500 and {len(id) for id in drawn} == {10}
