"""The schema, its migrations, and how SQLite is opened."""

import sqlite3
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from studio.errors import StudioError
from studio.library.database import Database, revision
from studio.library.ids import new_id
from studio.library.models import BaseRow, Table


def row(name: str) -> BaseRow:
    return BaseRow(name=name, path="/x", family="sdxl", bytes=1, added=1.0)


def opened(path: Path) -> Database:
    return Database.open(f"sqlite:///{path}", path.with_suffix(".lock"))


def test_migrations_from_nothing_make_exactly_the_models(tmp_path: Path) -> None:
    db = opened(tmp_path / "a.db")
    with db.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []
        connection.execute(text("ALTER TABLE bases ADD COLUMN extra TEXT"))
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) != []


def test_opening_again_keeps_rows_and_a_newer_schema_is_refused(tmp_path: Path) -> None:
    db = opened(tmp_path / "a.db")
    with db.write() as session:
        session.add(row("one"))
    db.close()
    again = opened(tmp_path / "a.db")
    with again.read() as session:
        assert session.get(BaseRow, "one") is not None
    with again.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = 'later'"))
    again.close()
    with pytest.raises(StudioError, match="newer LoRA Studio"):
        opened(tmp_path / "a.db")


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


def test_writers_in_many_threads_wait_for_each_other(tmp_path: Path) -> None:
    db = opened(tmp_path / "a.db")

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
