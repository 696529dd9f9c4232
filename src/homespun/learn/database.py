"""The rows of a query of an SQLite database, behind a cursor. It is only read, and never held open for long."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homespun.data.text import ROW
from homespun.errors import DataError
from homespun.learn.parts import PART, Cursors, Part

SECONDS = 30.0  # that a query may take
PATIENCE = 10.0  # seconds for a writer to finish
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


@dataclass
class Database:
    """The rows of a query with `:cursor` in it. Its first column is the cursor, and must rise; all others are the text.

    Nothing but reading is allowed, and each part is a query of its own: a learner that waits locks nobody out.
    """

    name: str
    domain: str
    path: Path
    query: str
    lasting: bool = True

    def changes(self, cursors: Cursors) -> Iterator[Part]:
        cursor = cursors("")
        while (part := self._part(cursor)) is not None:
            yield part
            cursor = part.cursor

    def _part(self, cursor: Any) -> Part | None:
        """The next rows behind the cursor, None where there are none."""
        end = time.monotonic() + SECONDS
        place = f"{self.path.absolute().as_uri()}?mode=ro"
        try:
            with closing(sqlite3.connect(place, uri=True, timeout=PATIENCE)) as base:
                if hasattr(base, "setlimit"):  # from Python 3.11
                    base.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, ROW)
                base.text_factory = lambda data: data.decode("utf-8", "replace")
                base.set_authorizer(_only_reading)
                base.set_progress_handler(lambda: time.monotonic() > end, 10_000)
                rows = base.execute(self.query, {"cursor": -(2**63) if cursor is None else cursor})
                return self._behind(cursor, rows)
        except sqlite3.Error as error:
            late = time.monotonic() > end
            told = f"the query takes more than {SECONDS:.0f} seconds" if late else str(error)
            raise DataError(f"{self.name} cannot be read: {told}", "Mend the query, or the database.") from None

    def _behind(self, before: Any, rows: Iterator[tuple[Any, ...]]) -> Part | None:
        texts: list[str] = []
        last = None
        for cursor, *columns in rows:
            if not isinstance(cursor, (int, float, str)):
                raise DataError(f"The cursor of {self.name} is {cursor!r}", "Choose a column of numbers or text.")
            if last is not None and _falls(last, cursor):
                raise DataError(f"The cursor of {self.name} falls from {last!r} to {cursor!r}", "Add: order by.")
            if before is not None and not _falls(cursor, before):
                told = f"{self.name} gives the row {cursor!r} again, which is not behind {before!r}"
                raise DataError(told, "Write: where CURSOR > :cursor order by CURSOR.")
            if cursor != last and len(texts) >= PART:  # rows of one cursor stay together
                break
            last = cursor
            texts.append("\n".join(_text(value) for value in columns if value is not None))
        return Part("", tuple(texts), last) if texts else None


def _only_reading(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    allowed = action in _ALLOWED and second != "load_extension"
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _falls(last: Any, cursor: Any) -> bool:
    """Whether `cursor` stands before `last`; SQLite has every number before any text."""
    return bool((isinstance(last, str), last) > (isinstance(cursor, str), cursor))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
