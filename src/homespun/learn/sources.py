"""What a learner watches: files, folders, tails of JSON lines, a database, standard input, the queue, the web.

Each source yields what is new since its cursors in small parts, every part with the cursor that stands behind it. The
journal takes both at once, so that a part is taken in once, whenever the process is killed.
"""

from __future__ import annotations

import json
import os
import queue
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from homespun.data import sources as named
from homespun.data.text import BLOCK, ROW
from homespun.errors import DataError, HomespunError
from homespun.learn import spool
from homespun.learn.database import Database
from homespun.learn.files import Files, texts_of
from homespun.learn.parts import PART, PIECE, Cursors, Part, Source
from homespun.learn.replay import CORPUS

WEB = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_NAMED = re.compile(r"([A-Za-z][\w-]*)=(.+)", re.DOTALL)
_SQLITE = re.compile(r"sqlite:([^?]+)\?(.+)", re.DOTALL)


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
    if (match := _NAMED.fullmatch(spec)) and not os.path.exists(spec):
        domain, word = match[1], match[2]
    source = _meant(word, domain, watch)
    if source.domain == CORPUS:
        told = "The domain `corpus` is the text that the run was trained on"
        raise DataError(told, f"Choose another name: mine={word}")
    return source


def _meant(word: str, domain: str | None, watch: bool) -> Source:
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
class Input:
    """Standard input: running text, cut at blank lines, or JSON lines. What was read of it is kept; what was not is
    the business of who writes it."""

    name: str
    domain: str
    lasting: bool = False

    def changes(self, cursors: Cursors) -> Iterator[Part]:
        waiting: list[bytes] = []
        size, inside = 0, False  # of a row that is too long, and comes in pieces
        for line in _lines(sys.stdin.buffer):
            if line is None:
                yield Part("", ())
            elif inside:
                inside = not line.endswith(b"\n")
            elif line.startswith(b"{"):
                inside = len(line) >= ROW and not line.endswith(b"\n")
                texts, problem = texts_of([line], "standard input")
                yield Part("", texts, None, problem)
            else:
                waiting.append(line)
                size += len(line)
                if size >= PIECE // 4 and not line.strip() or size >= BLOCK:
                    yield Part("", (_text(waiting),))
                    waiting, size = [], 0
        if waiting:
            yield Part("", (_text(waiting),))


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """The lines of a stream, None while it is silent: no signal ends a thread that waits for input."""
    found: queue.Queue[bytes | None] = queue.Queue(maxsize=PART)

    def read() -> None:
        while line := stream.readline(ROW):
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
