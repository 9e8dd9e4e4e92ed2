"""A database that fails at its n-th statement or commit, below everything that SQLAlchemy and the studio make of it."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite as Dialect

Mode = Literal["once", "lasting", "answer lost"]
REASONS = ("database or disk is full", "disk I/O error", "database is locked")


class Calls:
    """The statements and commits of a block, and whether one of them failed."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.failed = False


@contextmanager
def failing_sql(monkeypatch: pytest.MonkeyPatch, number: int, mode: Mode, reason: str = REASONS[0]) -> Iterator[Calls]:
    """Call `number` by this thread fails, and if lasting all after it. "answer lost": it has its effect and is told as a failure, as if a connection broke."""
    calls = Calls()
    own = threading.get_ident()

    def gated(real: Callable[..., Any], what: Callable[..., str]) -> Callable[..., Any]:
        def call(self: Dialect, *arguments: Any, **options: Any) -> Any:
            if threading.get_ident() != own:
                return real(self, *arguments, **options)  # of a studio that another test has in this process
            calls.seen.append(what(*arguments))
            fails = len(calls.seen) == number or (mode == "lasting" and len(calls.seen) > number)
            if not fails or mode == "answer lost":
                result = real(self, *arguments, **options)
            if fails:
                calls.failed = True
                raise sqlite3.OperationalError(reason)
            return result

        return call

    def statement(_cursor: Any, text: str, *_: Any) -> str:
        return text.split(None, 3)[0] if text else ""

    with monkeypatch.context() as patch:
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            patch.setattr(Dialect, name, gated(getattr(Dialect, name), statement))
        patch.setattr(Dialect, "do_commit", gated(Dialect.do_commit, lambda *_: "COMMIT"))
        yield calls
