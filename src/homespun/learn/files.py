"""Files and folders as sources: what is new or changed is read; rows of JSON are read on from where they ended."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from homespun.data import formats
from homespun.data import sources as named
from homespun.data.formats import READERS, Meter
from homespun.data.text import BLOCK, ROW, cut
from homespun.errors import DataError
from homespun.learn.parts import PART, PIECE, Cursors, Part, plain

SETTLED = 1.0  # seconds for which nobody wrote to a file
TAILS = (".jsonl", ".ndjson")


@dataclass
class Files:
    """A file, a folder with all below it, a glob, `stories:N` or `python:`. JSON lines are read on from where they
    ended; any other file that changed is read again, and what was there before is known by its hash. Hidden names are
    left out, and so are links that lead out of a folder."""

    name: str
    domain: str
    lasting: bool

    def changes(self, cursors: Cursors) -> Iterator[Part]:
        for source in self._there():
            try:
                if isinstance(source, named.File) and source.path.suffix.lower() in TAILS:
                    yield from _tail(source, cursors, self.lasting)
                else:
                    yield from self._whole(source, cursors)
            except OSError as error:  # gone, or not to be read now: the next look tries again
                yield Part(source.name, (), None, f"{source.name} cannot be read: {error.strerror or error}")

    def _there(self) -> list[named.Source]:
        folder = Path(self.name).expanduser()
        if not folder.is_dir():
            return named.resolve([self.name])
        inside = folder.resolve()
        found = []
        for path in sorted(folder.rglob("*")):
            if any(part.startswith(".") for part in path.relative_to(folder).parts):
                continue
            if formats.suffixes(path)[0] not in formats.KNOWN or not path.is_file():
                continue
            if not path.is_symlink() or path.resolve().is_relative_to(inside):
                found.append(named.File(path, str(path)))
        return list(found)

    def _whole(self, source: named.Source, cursors: Cursors) -> Iterator[Part]:
        mark: list[Any] = [source.name]
        if isinstance(source, named.File):
            status = source.path.stat()
            mark = [status.st_size, status.st_mtime_ns]
            if self.lasting and 0 <= time.time() - status.st_mtime < SETTLED:
                return
        before = cursors(source.name) or {}
        same = before.get("mark") == mark
        if same and before["end"]:
            return
        if isinstance(source, named.File):
            source.path.open("rb").close()  # what nobody may read now may be read later
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


def _tail(source: named.File, cursors: Cursors, lasting: bool) -> Iterator[Part]:
    """The rows behind the cursor: the byte where a row begins, and the texts of that row which were taken. A file that
    was replaced or cut is read from its start."""
    with open(source.path, "rb") as file:
        status = os.fstat(file.fileno())
        before = cursors(source.name) or {"offset": 0, "inode": status.st_ino, "head": ""}
        offset, taken = before["offset"], before.get("taken", 0)
        if before["inode"] != status.st_ino or offset > status.st_size or before["head"] != _head(source.path, offset):
            offset, taken = 0, 0

        def part(texts: list[str], problem: str | None) -> Part:
            place = {"offset": offset, "taken": taken, "inode": status.st_ino, "head": _head(source.path, offset)}
            return Part(source.name, tuple(texts), place, problem)

        file.seek(offset)
        texts: list[str] = []
        problem, begin = None, offset
        for row in _rows(file, lasting):
            found, wrong = texts_of([row], f"{source.name}, byte {offset:,}")
            problem = problem or wrong
            pieces = [piece for whole in found for piece in cut([whole], PIECE)]
            for text in pieces[taken:]:
                if len(texts) == PART:
                    yield part(texts, problem)
                    texts, problem, begin = [], None, offset
                texts.append(text)
                taken += 1
            offset, taken = offset + len(row), 0
            if offset - begin > BLOCK:
                yield part(texts, problem)
                texts, problem, begin = [], None, offset
        if offset > begin:
            yield part(texts, problem)


def _rows(file: BinaryIO, lasting: bool) -> Iterator[bytes]:
    """Whole rows with their ends; in a file that may still grow the last one may lack it, and waits. One that is longer
    than `ROW` comes in pieces."""
    while row := file.readline(ROW):
        if lasting and len(row) < ROW and not row.endswith(b"\n"):
            return
        yield row


def _head(path: Path, offset: int) -> str:
    """A hash of how a file begins, of what was read of it."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(min(offset, 256))).hexdigest() if offset else ""


def texts_of(rows: Iterable[bytes], place: str) -> tuple[tuple[str, ...], str | None]:
    """The texts of JSON rows; rows that are none are passed over, and the first of them is told."""
    texts: list[str] = []
    problem = None
    for row in rows:
        try:
            if len(row) >= ROW:
                raise DataError(f"{place}: a row has more than {ROW:,} bytes", "Split it.")
            if line := row.decode("utf-8").strip():
                texts += [plain(each) for each in READERS[".jsonl"](iter([line]), place, PIECE)]
        except UnicodeDecodeError:
            problem = problem or f"{place}: a row is no UTF-8 text"
        except DataError as error:
            problem = problem or error.problem.replace(f"{place}, line 1", place)
    return tuple(texts), problem
