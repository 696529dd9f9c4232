"""The journal of a learner: every source, text, cycle and decision, in one SQLite file.

What belongs together is one transaction, flushed to the disk: the texts that a source gave and how far it was read; a
cycle and the texts in it. Which cycles count is decided by the checkpoints alone (`homespun.learn.cycles`).
"""

from __future__ import annotations

import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from homespun.errors import DataError
from homespun.learn import dedup

JOURNAL = Path("learn") / "journal.sqlite"
"""Where it stands in a run's folder."""

VERSION = 1
CROWD = 32  # texts of one band: forms that are filled in would otherwise be compared with all before them
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE sources (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, domain TEXT NOT NULL,
    repeated INTEGER NOT NULL DEFAULT 0, unclean INTEGER NOT NULL DEFAULT 0, problem TEXT);
CREATE TABLE cursors (source INTEGER NOT NULL, place TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (source, place));
CREATE TABLE items (id INTEGER PRIMARY KEY, source INTEGER NOT NULL, domain TEXT NOT NULL, place TEXT NOT NULL,
    key TEXT UNIQUE NOT NULL, characters INTEGER NOT NULL, tokens INTEGER NOT NULL, state TEXT NOT NULL,
    cycle INTEGER, tries INTEGER NOT NULL DEFAULT 0, novelty REAL, alike INTEGER, taken REAL NOT NULL,
    signature BLOB NOT NULL, text TEXT);
CREATE INDEX items_state ON items (state, id);
CREATE INDEX items_cycle ON items (cycle);
CREATE TABLE bands (band INTEGER NOT NULL, item INTEGER NOT NULL, PRIMARY KEY (band, item)) WITHOUT ROWID;
CREATE TABLE spans (id INTEGER PRIMARY KEY, domain TEXT NOT NULL, side TEXT NOT NULL, priority INTEGER NOT NULL,
    cycle INTEGER, item INTEGER, tokens INTEGER NOT NULL, ids BLOB NOT NULL);
CREATE INDEX spans_side ON spans (side, domain, priority);
CREATE TABLE cycles (id INTEGER PRIMARY KEY, state TEXT NOT NULL, opened REAL NOT NULL, closed REAL,
    base_step INTEGER NOT NULL, step INTEGER, new_tokens INTEGER NOT NULL, replay_tokens INTEGER,
    learning_rate REAL NOT NULL, caution INTEGER NOT NULL DEFAULT 0, seconds REAL, figures TEXT, reason TEXT);
CREATE TABLE drift (domain TEXT NOT NULL, cycle INTEGER NOT NULL, value REAL NOT NULL, PRIMARY KEY (domain, cycle));
CREATE TABLE events (id INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Item:
    """A text that waits, or is in a cycle."""

    id: int
    domain: str
    key: str
    tokens: int
    tries: int
    text: str


@dataclass(frozen=True)
class Prepared:
    """A clean text with what tells it from others."""

    text: str
    key: str
    signature: np.ndarray
    tokens: int

    @classmethod
    def of(cls, text: str, tokens: int) -> Prepared:
        """Of a clean text of so many tokens."""
        return cls(text, dedup.content_key(text), dedup.signature(text), tokens)


class Journal:
    """An open journal; any thread may use it. `id` names it, for the checkpoints that its cycles made."""

    def __init__(self, path: Path, alike: float = 0.8):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.alike = path, alike
        self._lock = threading.RLock()
        self._base = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
        self._base.row_factory = sqlite3.Row
        try:
            self._base.execute("PRAGMA journal_mode = WAL")
            self._base.execute("PRAGMA synchronous = FULL")
            with self.transaction():
                if not self.value("SELECT count(*) FROM sqlite_master WHERE name = 'meta'"):
                    for statement in _TABLES.split(";"):
                        self._base.execute(statement)
                    self.run("INSERT INTO meta VALUES ('id', ?), ('version', ?)", uuid.uuid4().hex, str(VERSION))
            self.id = str(self.value("SELECT value FROM meta WHERE key = 'id'"))
            version = self.value("SELECT value FROM meta WHERE key = 'version'")
        except sqlite3.DatabaseError as error:
            raise DataError(f"{path} is no journal: {error}", "Restore it from a copy, or move it away.") from None
        if version != str(VERSION):
            raise DataError(f"{path} is a journal of version {version}", f"This program reads version {VERSION}.")

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._base.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing of what happens inside; on the disk when it ends."""
        with self._lock:
            if self._inside():
                yield
                return
            self.run("BEGIN IMMEDIATE")
            try:
                yield
                self.run("COMMIT")
            except BaseException:
                if self._inside():  # a full disk ends it by itself
                    self._base.execute("ROLLBACK")
                raise

    def _inside(self) -> bool:
        return self._base.in_transaction

    def run(self, statement: str, *values: Any) -> int:
        """Carries out a statement; the number of the row it added."""
        with self._lock, self._told():
            return self._base.execute(statement, [_storable(value) for value in values]).lastrowid or 0

    def rows(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        """What a query finds."""
        with self._lock, self._told():
            return self._base.execute(statement, [_storable(value) for value in values]).fetchall()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turns what goes wrong with the file, such as a full disk, into a `DataError`."""
        try:
            yield
        except sqlite3.OperationalError as error:
            hint = "Make room on the disk or mend its rights; the same command then goes on."
            raise DataError(f"{self.path} cannot be read or written: {error}", hint) from None

    def value(self, statement: str, *values: Any) -> Any:
        """The first column of the first row of a query; None where there is none."""
        found = self.rows(statement, *values)
        return found[0][0] if found else None

    def note(self, kind: str, text: str) -> None:
        """Adds an event."""
        self.run("INSERT INTO events (time, kind, text) VALUES (?, ?, ?)", time.time(), kind, text)

    # -- what comes in ------------------------------------------------------------------------------------------------

    def source(self, name: str, domain: str) -> int:
        """The number of a source, whose texts from now on are of this domain."""
        self.run("INSERT INTO sources (name, domain) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET domain = "
                 "excluded.domain", name, domain)  # fmt: skip
        return int(self.value("SELECT id FROM sources WHERE name = ?", name))

    def cursor(self, source: int, place: str) -> str | None:
        """How far a place of a source was read."""
        found = self.value("SELECT value FROM cursors WHERE source = ? AND place = ?", source, place)
        return None if found is None else str(found)

    def take(
        self,
        source: int,
        place: str,
        texts: Sequence[Prepared],
        cursor: str | None,
        problem: str | None = None,
        unclean: int = 0,
    ) -> int:
        """Takes texts in and moves the cursor, at once; returns how many were new. `problem`: what of the source will
        never be read."""
        new = 0
        with self.transaction():
            domain = str(self.value("SELECT domain FROM sources WHERE id = ?", source))
            for text in texts:
                new += self._add(source, domain, place, text)
            self.run(
                "UPDATE sources SET repeated = repeated + ?, unclean = unclean + ?, problem = coalesce(?, problem) "
                "WHERE id = ?", len(texts) - new, unclean, problem, source,
            )  # fmt: skip
            if cursor is not None:
                self.run("INSERT OR REPLACE INTO cursors VALUES (?, ?, ?)", source, place, cursor)
            if problem is not None:
                self.note("problem", problem)
        return new

    def _add(self, source: int, domain: str, place: str, text: Prepared) -> bool:
        """Adds an item unless its very text is there; one nearly alike is kept as a record only."""
        if self.value("SELECT 1 FROM items WHERE key = ?", text.key):
            return False
        marks = dedup.bands(text.signature)
        twin = self._twin(text.signature, marks)
        number = self.run(
            "INSERT INTO items (source, domain, place, key, characters, tokens, state, alike, taken, signature, text) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            source, domain, place, text.key, len(text.text), text.tokens, "waiting" if twin is None else "alike", twin,
            time.time(), text.signature.tobytes(), text.text if twin is None else None,
        )  # fmt: skip
        if twin is None:
            for mark in marks:
                if len(self.rows("SELECT 1 FROM bands WHERE band = ? LIMIT ?", mark, CROWD)) < CROWD:
                    self.run("INSERT OR IGNORE INTO bands VALUES (?, ?)", mark, number)
        return twin is None

    def _twin(self, found: np.ndarray, marks: Sequence[int]) -> int | None:
        """An item that is nearly the same text."""
        places = ", ".join("?" * len(marks))
        for row in self.rows(
            f"SELECT DISTINCT id, signature FROM bands JOIN items ON id = item WHERE band IN ({places})", *marks
        ):
            if dedup.similarity(found, np.frombuffer(row["signature"], dtype=np.uint32)) >= self.alike:
                return int(row["id"])
        return None

    # -- what waits ---------------------------------------------------------------------------------------------------

    def queued(self) -> tuple[int, int, float | None]:
        """Texts that wait, their tokens, and when the oldest was taken."""
        row = self.rows("SELECT count(*), coalesce(sum(tokens), 0), min(taken) FROM items WHERE state = 'waiting'")[0]
        return int(row[0]), int(row[1]), row[2]

    def waiting(self) -> Iterator[Item]:
        """The texts that wait, the oldest first."""
        last = 0
        query = "SELECT id, domain, key, tokens, tries, text FROM items WHERE state = 'waiting' AND id > ? ORDER BY id"
        while found := self.rows(f"{query} LIMIT 256", last):
            yield from (Item(**dict(row)) for row in found)
            last = found[-1]["id"]

    def bytes(self) -> int:
        """What the journal takes on the disk."""
        places = [self.path, self.path.with_name(self.path.name + "-wal")]
        return sum(place.stat().st_size for place in places if place.exists())


def _storable(value: Any) -> Any:
    """Names of files may hold bytes that are no UTF-8, which SQLite does not take."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
