"""Opening the database: engine, migrations, sessions."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from studio.errors import StudioError

MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """Short sessions on one database; `read` and `write` are transactions."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writing = engine.execution_options(studio_write=True)

    @classmethod
    def open(cls, url: str, lock: Path | None = None) -> "Database":
        """Connect and bring the schema up to date. `lock`: a file that keeps two processes from migrating at once."""
        import contextlib

        from filelock import FileLock

        engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
        if engine.dialect.name == "sqlite":
            _prepare_sqlite(engine)
        try:
            with FileLock(lock) if lock else contextlib.nullcontext():
                migrate(engine)
        except OperationalError as error:
            raise StudioError(f"database {engine.url.render_as_string(hide_password=True)} cannot be opened: {error.orig}") from None
        return cls(engine)

    @contextmanager
    def read(self) -> Iterator[Session]:
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is committed at the end of the block, or not at all."""
        with Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        self.engine.dispose()


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions on its own: see _begun
        cursor = connection.cursor()
        # FULL: an acknowledged checkpoint or adapter survives a power cut, not only a crash of ours
        for pragma in ("busy_timeout=5000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
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
