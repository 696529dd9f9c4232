"""An index of passages in one file of SQLite, searched by words and by meaning.

Words are ranked by BM25 (SQLite's FTS5), meaning by the cosines of a model's vectors, all of them, and the two ranks of
a passage are fused. How much the meaning counts was measured when the index was made (`trust.py`).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from homespun.errors import DataError
from homespun.retrieve.protocol import Meaning, Passage
from homespun.retrieve.ranking import by_meaning, by_words, fused

if TYPE_CHECKING:
    from homespun.generate.thought import Source

FORMAT = "homespun-index 2"
SCHEMA = {
    "about": "CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "source": "CREATE TABLE source (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, hash TEXT NOT NULL)",
    "passage": "CREATE TABLE passage (id INTEGER PRIMARY KEY, source INTEGER NOT NULL, place TEXT NOT NULL,"
    " text TEXT NOT NULL, vector BLOB)",
    "of_source": "CREATE INDEX of_source ON passage (source)",
    "words": "CREATE VIRTUAL TABLE words USING fts5 (text, content='passage', content_rowid='id')",
}
_ADDED = {f"sqlite_autoindex_{name}_1" for name in ("about", "source")} | {
    f"words_{name}" for name in ("data", "idx", "docsize", "config")
}
VECTOR = "<f4"  # how the numbers of a vector are kept
DEPTH = 100  # passages of each ranking that are fused
LONGEST = 2000  # characters of a query, the last ones: they say what it is about now


class Index:
    """`index.retrieve("a question")` -> passages, the best first. Several threads may ask at a time.

    Without a model, or with another than the one that made the vectors, passages are found by their words alone;
    `notes` tells of the second. `weight`: how much the rank by meaning counts beside that by words. Raises `DataError`
    for a file that is no index, or is damaged.
    """

    def __init__(self, path: str | Path, meaning: Meaning | None = None):
        self.path, self.notes = Path(path), []
        self._lock = threading.Lock()
        self._base = opened(self.path)
        told_of = about(self._base)
        made_by = told_of.get("model")
        self.weight = _weight(self.path, told_of)
        self._meaning = meaning if meaning is not None and made_by == meaning.identity else None
        if meaning is not None and made_by is not None and self._meaning is None:
            self.notes.append(
                f"the vectors in {path} were made by another model, so passages are found by their words alone; "
                "homespun index with --run makes them again"
            )

    @classmethod
    def open(cls, path: str | Path, run: Source | None = None) -> Index:
        """The index in a file; with a run, searched by its meaning, too."""
        return cls(path, _meaning(run))

    @classmethod
    def build(
        cls,
        data: str | Path | Sequence[str | Path],
        out: str | Path,
        run: Source | None = None,
        say: Callable[[str], None] = lambda note: None,
    ) -> Index:
        """Makes or renews the index in the file `out` of the text in `data` (docs/data.md), and opens it.

        With a run, its vectors are in it. `say` hears how far it is. Raises `DataError`.
        """
        from homespun.retrieve.build import build

        meaning = _meaning(run)
        build([data] if isinstance(data, (str, Path)) else data, Path(out), meaning, say)
        return cls(out, meaning)

    def __len__(self) -> int:
        """How many passages there are."""
        with self._lock, told(self.path):
            count: int = self._base.execute("SELECT count(*) FROM passage").fetchone()[0]
        return count

    def retrieve(self, query: str, count: int = 3) -> list[Passage]:
        """See `Retriever`. The score is 1 / (60 + rank) by words, and `weight` / (60 + rank) by meaning."""
        depth, query = max(DEPTH, count), query[-LONGEST:]
        with self._lock, told(self.path):
            rankings = [by_words(self._base, query, depth), []]
        if self._meaning is not None and query.strip():
            rankings[1] = self._by_meaning(self._meaning.embed([query])[0], depth)
        with self._lock, told(self.path):
            return [self._passage(*found) for found in fused(rankings, (1.0, self.weight))[:count]]

    def _by_meaning(self, vector: np.ndarray, depth: int) -> list[int]:
        ids, vectors = self._vectors
        if len(ids) and vectors.shape[1] != len(vector):
            raise damaged(self.path, "its vectors have another length than the model's")
        return by_meaning(ids, vectors, vector, depth)

    @cached_property
    def _vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the passages that have a vector, (P,), and the vectors, (P, e)."""
        with self._lock, told(self.path):
            rows = self._base.execute("SELECT id, vector FROM passage WHERE vector IS NOT NULL ORDER BY id").fetchall()
        if not rows:
            return np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
        sizes = {len(vector) if isinstance(vector, bytes) else -1 for _, vector in rows}
        size = sizes.pop()
        if sizes or size <= 0 or size % 4:
            raise damaged(self.path, "its vectors differ in length")
        vectors = np.frombuffer(b"".join(vector for _, vector in rows), VECTOR).reshape(len(rows), -1)
        if not np.isfinite(vectors).all():
            raise damaged(self.path, "its vectors hold what is no number")
        return np.array([number for number, _ in rows]), vectors.astype(np.float32)

    def _passage(self, number: int, score: float) -> Passage:
        row = self._base.execute(
            "SELECT passage.text, source.name, place FROM passage JOIN source ON source.id = passage.source"
            " WHERE passage.id = ?",
            (number,),
        ).fetchone()
        if row is None or not all(isinstance(part, str) for part in row):
            raise damaged(self.path, "a passage of it is missing")
        text, source, place = row
        return Passage(text, source, place, score)


def open_index(spec: str, meaning: Meaning | None) -> Index:
    """The kind `index`: `spec` is the file."""
    return Index(spec, meaning)


def opened(path: Path) -> sqlite3.Connection:
    """The base of an index, for reading alone; its file is never changed in place. Raises `DataError` for others."""
    if not path.exists():
        raise DataError(f"There is no index {path}", f"Make one: homespun index DATA --out {path}")
    other = DataError(f"{path} is no index of this version", "Name another file, or make one: homespun index.")
    if not path.is_file() or not _begins_as_sqlite(path):
        raise other
    with told(path):
        base = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False)
        try:
            base.execute("PRAGMA trusted_schema = OFF")
            if _schema(base) != SCHEMA or about(base).get("format") != FORMAT:
                raise other
        except BaseException:
            base.close()
            raise
    return base


def _begins_as_sqlite(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError as error:
        raise DataError(
            f"The index {path} cannot be read: {error.strerror}", "Check the file and its rights."
        ) from None


def _schema(base: sqlite3.Connection) -> dict[str, str]:
    """All that the base is made of, besides what SQLite itself adds."""
    found = base.execute("SELECT name, sql FROM sqlite_master")
    return {name: sql for name, sql in found if name not in _ADDED}


def about(base: sqlite3.Connection) -> dict[str, Any]:
    """`format`, and where there are vectors `model`, the identity of what made them, and `weight`, what they count."""
    return dict(base.execute("SELECT key, value FROM about"))


def _weight(path: Path, told_of: dict[str, Any]) -> float:
    try:
        weight = float(told_of.get("weight", 0.0))
    except (TypeError, ValueError):
        weight = -1.0
    if not 0 <= weight <= 1:
        raise damaged(path, "the weight of its vectors is none")
    return weight


def damaged(path: Path, what: str) -> DataError:
    """The error for an index that is not as it was made."""
    return DataError(f"The index {path} is damaged: {what}", "Delete it and make it again: homespun index.")


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turns what SQLite says of a damaged file into a `DataError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise damaged(path, str(error)) from None


def _meaning(run: Source | None) -> Meaning | None:
    if run is None:
        return None
    from homespun.retrieve.meaning import RunMeaning

    return RunMeaning(run)
