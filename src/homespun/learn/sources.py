"""What a learner watches: files, folders, tails of JSON lines, a database, standard input, the queue, the web.

Each source yields what is new since its cursors in small parts, every part with the cursor that stands behind it. The
journal takes both at once, so that a part is taken in once, whenever the process is killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import re
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from homespun.data import formats
from homespun.data import sources as named
from homespun.data.formats import READERS, Document, Meter
from homespun.errors import DataError, HomespunError
from homespun.learn import spool

PART = 64  # texts
PIECE = 2048  # characters after which running text is cut at the next blank line
BLOCK = 1 << 20  # bytes of a tail at a time
SETTLED = 1.0  # seconds for which nobody wrote to a file
TAILS = (".jsonl", ".ndjson")
WEB = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_NAMED = re.compile(r"([A-Za-z][\w-]*)=(.+)", re.DOTALL)
_SQLITE = re.compile(r"sqlite:([^?]+)\?(.+)", re.DOTALL)


@dataclass(frozen=True)
class Part:
    """Some texts of a place, and how far it is then read. `problem`: what of it cannot be read, for people."""

    place: str
    texts: tuple[str, ...]
    cursor: Any = None
    problem: str | None = None
    done: Callable[[], None] | None = None  # called when the part is on the disk


Cursors = Callable[[str], Any]
"""The cursor of a place, None where there is none."""


class Source(Protocol):
    """Something watched. `domain`: what its texts are measured with. `lasting`: it may still change."""

    name: str
    domain: str
    lasting: bool

    def changes(self, cursors: Cursors) -> Iterator[Part]:
        """What is new at this moment."""
        ...


def open_sources(specs: Iterable[str], run: Path, watch: bool) -> list[Source]:
    """The sources that words of the command line mean, each `SOURCE` or `DOMAIN=SOURCE`, and the run's own queue.

    Raises `DataError` for what means nothing.
    """
    found: list[Source] = [_open(spec, watch) for spec in specs]
    queue = Queue(spool.folder_of(run))
    names = [source.name for source in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"The source {twice!r} is named twice", "Name it once.")
    return [*found, queue]


def _open(spec: str, watch: bool) -> Source:
    domain, word = None, spec
    if (match := _NAMED.fullmatch(spec)) and not Path(spec).exists():
        domain, word = match[1], match[2]
    if domain == "corpus":
        raise DataError("The domain `corpus` is the text that the run was trained on", "Choose another name.")
    if word == "-":
        return Input("-", domain or "input")
    if word.startswith("sqlite:"):
        return _database(word, domain)
    if WEB.match(word):
        from homespun.learn.web import Web

        return Web(word, domain or word.split("://", 1)[1].split("/")[0] or word)
    if not (watch and Path(word).is_dir()):  # a folder may still be empty
        named.resolve([word])
    return Files(word, domain or Path(word).stem or word, watch)


def _database(word: str, domain: str | None) -> Database:
    match = _SQLITE.fullmatch(word)
    if match is None or ":cursor" not in match[2]:
        example = "sqlite:notes.db?select id, body from notes where id > :cursor order by id"
        raise DataError(f"{word!r} is no query with a cursor", f"Write: '{example}'.")
    if not Path(match[1]).is_file():
        raise DataError(f"{match[1]!r} does not exist", "Name the file of an SQLite database.")
    return Database(word, domain or Path(match[1]).stem, Path(match[1]), match[2])


@dataclass
class Files:
    """A file, a folder with all below it, a glob, `stories:N` or `python:`. JSON lines are read on from where they
    ended; any other file that changed is read again, and what was there before is known by its hash."""

    name: str
    domain: str
    lasting: bool

    def changes(self, cursors: Cursors) -> Iterator[Part]:
        for source in self._there():
            if isinstance(source, named.File) and source.path.suffix.lower() in TAILS:
                yield from _tail(source, cursors, self.lasting)
            else:
                yield from self._whole(source, cursors)

    def _there(self) -> list[named.Source]:
        folder = Path(self.name).expanduser()
        if not folder.is_dir():
            return named.resolve([self.name])
        shown = (path for path in sorted(folder.rglob("*")) if not path.name.startswith("."))
        known = (path for path in shown if formats.suffixes(path)[0] in formats.KNOWN and path.is_file())
        return [named.File(path, str(path)) for path in known]

    def _whole(self, source: named.Source, cursors: Cursors) -> Iterator[Part]:
        mark: list[Any] = [source.name]
        if isinstance(source, named.File):
            status = source.path.stat()
            mark = [status.st_size, status.st_mtime_ns]
            if self.lasting and time.time() - status.st_mtime < SETTLED:
                return
        before = cursors(source.name) or {}
        same = before.get("mark") == mark
        if same and before["end"]:
            return
        done = before["done"] if same else 0
        texts = islice(map(plain, source.documents(PIECE, Meter())), done, None)
        try:
            while part := tuple(islice(texts, PART)):
                done += len(part)
                yield Part(source.name, part, {"mark": mark, "done": done, "end": False})
            problem = None
        except DataError as error:
            problem = str(error)
        yield Part(source.name, (), {"mark": mark, "done": done, "end": True}, problem)


def plain(document: Document) -> str:
    """A document as text; turns of a conversation are set apart by plain words."""
    return "".join(part if isinstance(part, str) else part.marker for part in document)


def _tail(source: named.File, cursors: Cursors, lasting: bool) -> Iterator[Part]:
    """The rows behind the byte cursor. A file that was replaced or cut is read from its start."""
    with open(source.path, "rb") as file:
        status = os.fstat(file.fileno())
        before = cursors(source.name) or {"offset": 0, "inode": status.st_ino, "head": ""}
        offset = before["offset"]
        if before["inode"] != status.st_ino or offset > status.st_size or before["head"] != _head(source.path, offset):
            offset = 0
        file.seek(offset)
        rest = b""
        while block := file.read(BLOCK):
            *lines, rest = (rest + block).split(b"\n")
            for first in range(0, len(lines), PART):
                rows = lines[first : first + PART]
                texts, problem = _rows(rows, f"{source.name}, byte {offset:,}")
                offset += sum(len(row) + 1 for row in rows)
                yield Part(source.name, texts, _place(source.path, offset, status.st_ino), problem)
    if rest and not lasting:  # the last row may lack its end
        texts, problem = _rows([rest], f"{source.name}, byte {offset:,}")
        yield Part(source.name, texts, _place(source.path, offset + len(rest), status.st_ino), problem)


def _place(path: Path, offset: int, inode: int) -> dict[str, Any]:
    return {"offset": offset, "inode": inode, "head": _head(path, offset)}


def _head(path: Path, offset: int) -> str:
    """A hash of how a file begins, of what was read of it."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(min(offset, 256))).hexdigest() if offset else ""


def _rows(lines: Iterable[bytes], place: str) -> tuple[tuple[str, ...], str | None]:
    """The texts of JSON rows; rows that are none are passed over, and the first of them is told."""
    texts: list[str] = []
    problem = None
    for line in lines:
        try:
            if row := line.decode("utf-8").strip():
                texts += [plain(each) for each in READERS[".jsonl"](iter([row]), place, PIECE)]
        except UnicodeDecodeError:
            problem = problem or f"{place}: a row is no UTF-8 text"
        except DataError as error:
            problem = problem or error.problem
    return tuple(texts), problem


@dataclass
class Database:
    """The rows of a query of an SQLite database with `:cursor` in it. Its first column is the cursor, and must rise;
    all others are the text."""

    name: str
    domain: str
    path: Path
    query: str
    lasting: bool = True

    def changes(self, cursors: Cursors) -> Iterator[Part]:
        cursor = cursors("")
        try:
            with closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as base:
                rows = base.execute(self.query, {"cursor": -(2**63) if cursor is None else cursor})
                yield from self._parts(rows)
        except sqlite3.Error as error:
            raise DataError(f"{self.name} cannot be read: {error}", "Mend the query, or the database.") from None

    def _parts(self, rows: Iterator[tuple[Any, ...]]) -> Iterator[Part]:
        texts: list[str] = []
        last = None
        for cursor, *columns in rows:
            if last is not None and cursor < last:
                raise DataError(f"The cursor of {self.name} falls from {last!r} to {cursor!r}", "Add: order by.")
            if cursor != last and len(texts) >= PART:  # rows of one cursor stay together
                yield Part("", tuple(texts), last)
                texts = []
            last = cursor
            texts.append("\n".join(str(value) for value in columns if value is not None))
        if texts:
            yield Part("", tuple(texts), last)


@dataclass
class Input:
    """Standard input: running text, cut at blank lines, or JSON lines. What was read of it is kept; what was not is
    the business of who writes it."""

    name: str
    domain: str
    lasting: bool = False

    def changes(self, cursors: Cursors) -> Iterator[Part]:
        waiting: list[bytes] = []
        for line in _lines(sys.stdin.buffer):
            if line is None:
                yield Part("", ())
            elif line.startswith(b"{"):
                texts, problem = _rows([line], "standard input")
                yield Part("", texts, None, problem)
            else:
                waiting.append(line)
                if not line.strip() and sum(map(len, waiting)) >= PIECE // 4:
                    yield Part("", (_text(waiting),))
                    waiting = []
        if waiting:
            yield Part("", (_text(waiting),))


def _lines(stream: Any) -> Iterator[bytes | None]:
    """The lines of a stream, None while it is silent: no signal ends a thread that waits for input."""
    found: queue.Queue[bytes | None] = queue.Queue(maxsize=PART)

    def read() -> None:
        for line in stream:
            found.put(line)
        found.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    while True:
        try:
            line = found.get(timeout=0.2)
        except queue.Empty:
            yield None
            continue
        if line is None:
            return
        yield line


def _text(lines: list[bytes]) -> str:
    return b"".join(lines).decode("utf-8", "replace")


@dataclass
class Queue:
    """What other processes left with `spool.put`. A file goes when its text is in the journal; one that a kill left
    there is known by its name."""

    folder: Path
    name: str = "queue"
    domain: str = "queue"
    lasting: bool = True

    def changes(self, cursors: Cursors) -> Iterator[Part]:
        for place in sorted(self.folder.glob(f"[!.]*{spool.SUFFIX}")):
            if cursors(place.name) is not None:
                place.unlink()
                continue
            text = place.read_bytes().decode("utf-8", "replace")
            yield Part(place.name, (text,), {"taken": True}, done=place.unlink)


def encode_cursor(cursor: Any) -> str | None:
    """How the journal keeps a cursor."""
    return None if cursor is None else json.dumps(cursor)


def problem_of(error: Exception) -> str:
    """What is told of a source that cannot be read at the moment."""
    return str(error) if isinstance(error, (HomespunError, OSError)) else f"{type(error).__name__}: {error}"
