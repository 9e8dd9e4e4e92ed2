"""Opening the database: engine, migrations, sessions. A SQLite file by default, a PostgreSQL server by its URL."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import Session

from studio.errors import InputError, StudioError, Unavailable
from studio.library.models import Table

MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATING = 0x10A57D10  # the advisory lock under which one of many processes migrates a PostgreSQL database
BUSY_SECONDS = 5.0  # so long a statement waits for another program that writes


class Locked(Unavailable):
    """Another program writes; nothing of ours was."""


class Database:
    """Short sessions on one database; `read` and `write` are transactions."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writing = engine.execution_options(studio_write=True)

    @classmethod
    def open(cls, url: str, lock: Path | None = None) -> "Database":
        """Connect and bring the schema up to date. `lock`: a file that keeps two processes from migrating at once."""
        from filelock import FileLock

        engine = _engine(url)
        try:
            with FileLock(lock) if lock else contextlib.nullcontext(), _migrating(engine):
                migrate(engine)
        except OperationalError as error:
            raise StudioError(f"database {engine.url.render_as_string(hide_password=True)} cannot be opened: {_first_line(error)}") from None
        return cls(engine)

    @contextmanager
    def read(self) -> Iterator[Session]:
        with _told(), Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is committed at the end of the block, or not at all. Raises Unavailable if the database does not answer."""
        with _told(), Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    def forget(self, table: type[Table], id: str, after: BaseException) -> None:
        """Delete a row after a failure to write it, if the database lets us: a commit may have happened though its answer was lost."""
        if isinstance(after, Locked):
            return
        with contextlib.suppress(Unavailable), self.write() as session:
            row = session.get(table, id)
            if row is not None:
                session.delete(row)

    def close(self) -> None:
        self.engine.dispose()


def _engine(url: str) -> Engine:
    """The engine of a URL, with our driver for PostgreSQL. Raises InputError for a URL that none can be made of."""
    try:
        parts = make_url(url)
        if parts.drivername in ("postgres", "postgresql"):
            parts = parts.set(drivername="postgresql+psycopg")
        sqlite = parts.get_backend_name() == "sqlite"
        # A connection that the server has dropped meanwhile is noticed before it is used
        engine = create_engine(parts) if sqlite else create_engine(parts, pool_pre_ping=True, connect_args={"connect_timeout": 10})
    except (ArgumentError, NoSuchModuleError):
        raise InputError("STUDIO_DATABASE_URL is no database address; use postgresql://user:password@host/name, or leave it empty") from None
    except ModuleNotFoundError as error:
        raise InputError(f"this database needs the Python package {error.name}; install lora-studio[postgres]") from None
    if sqlite:
        _prepare_sqlite(engine)
    return engine


@contextmanager
def _migrating(engine: Engine) -> Iterator[None]:
    """One process at a time, whichever machine it runs on; a lock file keeps those apart that share a SQLite file."""
    if engine.dialect.name != "postgresql":
        yield
        return
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATING})
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATING})


@contextmanager
def _told() -> Iterator[None]:
    """What the database refuses for reasons outside the program, as one line with the way out."""
    try:
        yield
    except OperationalError as error:
        reason = _first_line(error)
        if "locked" in reason or "busy" in reason:
            raise Locked("the database is locked by another program; nothing was changed: close that program and do it again") from error
        if "full" in reason:
            raise Unavailable("the disk with the database is full; nothing was changed: free some space and do it again") from error
        raise Unavailable(f"the database does not answer ({reason}); nothing was changed: see that it runs and do it again") from error
    except IntegrityError:
        raise  # what to make of a value that is taken is known where it is written
    except DatabaseError as error:
        reason = _first_line(error)
        raise Unavailable(f"the database is damaged ({reason}); nothing was changed: end the studio and start it again, which rebuilds it") from error


def _first_line(error: DatabaseError) -> str:
    return next(iter(str(error.orig).splitlines()), "no reason given").strip()


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions on its own: see _begun
        cursor = connection.cursor()
        # FULL: an acknowledged checkpoint or adapter survives a power cut, not only a crash of ours
        for pragma in (f"busy_timeout={BUSY_SECONDS * 1000:.0f}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        # A reader that turns writer fails at once when somebody else wrote meanwhile; a writer that says so first waits its turn
        writes = connection.get_execution_options().get("studio_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def migrate(engine: Engine) -> None:
    """Upgrade the schema to the newest revision; one transaction, one backup of an older SQLite file before it."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    settings = Config()
    settings.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    settings.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(settings)
    current = revision(engine)
    if current == scripts.get_current_head():
        return
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        raise StudioError(f"the data folder was written by a newer LoRA Studio (schema {current}); update the program, or open another folder with --data")
    if current is not None:
        _back_up(engine, current)
    with engine.execution_options(studio_write=True).begin() as connection:
        settings.attributes["connection"] = connection
        command.upgrade(settings, "head")


def revision(engine: Engine) -> str | None:
    """The schema revision of a database; None for an empty one."""
    if not inspect(engine).has_table("alembic_version"):
        return None
    with engine.connect() as connection:
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _back_up(engine: Engine, current: str) -> None:
    if engine.dialect.name != "sqlite" or not engine.url.database:
        return
    import sqlite3
    from contextlib import closing

    source = Path(engine.url.database)
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(source.with_name(f"{source.name}.before-{current}"))) as copy:
        old.backup(copy)
