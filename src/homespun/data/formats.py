"""From the bytes of one file to its documents, streamed: decompression, decoding, and the formats of text and rows.

Whatever the size of a file, only some megabytes of it are in memory. Every error names the file and the place in it.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from homespun.data.conversation import ANSWERS, CONTEXTS, QUESTIONS, Special, render
from homespun.data.text import BLOCK, END_OF_TEXT, ROW, cut, cut_marked, decode, lines
from homespun.errors import DataError, HomespunError, MissingExtraError

Document = Sequence[str | Special]
"""Ordinary text and the special tokens that a template put between; usually one string."""

PIECE = 8192
"""Characters after which running text is cut at the next blank line."""

_COLUMNS = {"messages", "text", *QUESTIONS, *CONTEXTS, *ANSWERS}  # the others of a table are not even read
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass
class Meter:
    """Counts the bytes that were read of the files themselves, before decompression."""

    done: int = 0


class _Counted(io.RawIOBase):
    """A file that tells a meter what was read of it."""

    def __init__(self, file: BinaryIO, meter: Meter):
        self._file, self._meter = file, meter

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._meter.done += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Zstandard:
    """Frames of Zstandard. The package's own stream reader takes a file that was cut short for a whole one."""

    def __init__(self, file: BinaryIO):
        try:
            import zstandard
        except ImportError:
            raise MissingExtraError("Reading .zst files", "zstandard", "data") from None
        self._file, self._new = file, zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None

    def read(self, size: int) -> bytes:
        """About `size` bytes; none at the end. Raises `EOFError` where the file ends inside a frame."""
        found, length = [], 0
        while length < size and (block := self._file.read(4096)):  # so little can grow to 128 MB at most
            while block:
                self._frame = self._frame or self._new()
                found.append(self._frame.decompress(block))
                length += len(found[-1])
                block = self._frame.unused_data
                self._frame = None if self._frame.eof else self._frame
        if not length and self._frame:
            raise EOFError("it ends inside a frame")
        return b"".join(found)


COMPRESSIONS: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _Zstandard,
}


def suffixes(path: Path) -> tuple[str, str]:
    """`(".jsonl", ".gz")` of `rows.jsonl.gz`: the format and the compression, lower case, "" where there is none."""
    *before, last = ["", *(suffix.lower() for suffix in path.suffixes)]
    if last in COMPRESSIONS:
        return (before[-1] if before else ""), last
    return last, ""


def read(path: Path, name: str, piece: int, meter: Meter) -> Iterator[Document]:
    """The documents of the file at `path`; `name` is what errors call it. An unknown suffix is read as running text.

    Raises `DataError` where a file is damaged, is no text, or holds a row that is none.
    """
    suffix = suffixes(path)[0]
    if suffix == ".parquet":
        yield from _parquet(path, name, meter)
        return
    with opened(path, name, meter) as blocks:
        yield from READERS.get(suffix, _running_text)(blocks, name, piece)


@contextmanager
def opened(path: Path, name: str, meter: Meter) -> Iterator[Iterator[str]]:
    """The text of a file in blocks, decompressed and decoded; errors are those of `read`."""
    compression = suffixes(path)[1]
    with _file_errors(name), open(path, "rb") as raw:
        counted = io.BufferedReader(_Counted(raw, meter), BLOCK)
        stream = COMPRESSIONS[compression](counted) if compression else counted
        yield decode(stream, name)


def has_lines(path: Path) -> bool:
    """Whether a file is running text, in which a line has a number; the documents of others are rows."""
    suffix = suffixes(path)[0]
    return suffix != ".parquet" and READERS.get(suffix, _running_text) in (_running_text, _prose, _code)


@contextmanager
def _file_errors(name: str) -> Iterator[None]:
    try:
        yield
    except HomespunError:
        raise
    except Exception as error:
        kind = type(error)
        if isinstance(error, (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)) or kind.__name__ == "ZstdError":
            raise DataError(f"{name} is damaged or cut short: {error}", "Fetch or compress it again.") from None
        if isinstance(error, OSError):
            problem = f"{name} cannot be read: {error.strerror or error}"
            raise DataError(problem, "Check the file and its rights.") from None
        raise


def _running_text(blocks: Iterator[str], name: str, piece: int) -> Iterator[Document]:
    """Running text: cut at lines `<|endoftext|>` where its first megabyte holds one, else at blank lines."""
    first = next(blocks, "")
    blocks = chain([first], blocks)
    texts = cut_marked(blocks) if END_OF_TEXT.search(first) else cut(blocks, piece)
    yield from ([text] for text in texts if not text.isspace())


def _prose(blocks: Iterator[str], name: str, piece: int) -> Iterator[Document]:
    yield from ([text] for text in cut(blocks, piece) if not text.isspace())


def _code(blocks: Iterator[str], name: str, piece: int) -> Iterator[Document]:
    yield from _prose(blocks, name, 8 * piece)  # nearly every source file stays whole


def json_rows(blocks: Iterator[str], name: str) -> Iterator[tuple[str, Any]]:
    """Of each row of JSON lines its place, for errors, and what it holds. Raises `DataError` where a row is no JSON."""
    for number, line in enumerate(lines(blocks, name), 1):
        if not line.isspace():
            place = f"{name}, line {number:,}"
            yield place, _json_row(line, place)


def _json_lines(blocks: Iterator[str], name: str, piece: int) -> Iterator[Document]:
    for place, row in json_rows(blocks, name):
        yield from _document(row, place)


def _json_row(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        if line.strip() in ("[", "{"):
            problem, hint = (
                "begins a JSON value of many lines",
                "Write one object per line: jq -c '.[]' OLD > NEW.jsonl",
            )
        else:
            problem, hint = f"is no JSON: {error}", "Mend that line: each holds one whole JSON object."
        raise DataError(f"{place} {problem}", hint) from None


def _document(row: Any, place: str) -> Iterator[Document]:
    """The document of a row, if it holds any text. Half a surrogate pair, which is no text, becomes U+FFFD."""
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, dict):
        raise DataError(f"{place} is no object", 'Write rows such as {"text": "..."}.')
    try:
        pieces = render(row)
    except DataError as error:
        raise DataError(f"{place}: {error.problem}", error.hint) from None
    if any(not isinstance(part, str) or (part and not part.isspace()) for part in pieces):
        yield [_SURROGATES.sub("\ufffd", part) if isinstance(part, str) else part for part in pieces]


def _csv(blocks: Iterator[str], name: str, piece: int) -> Iterator[Document]:
    rows = lines(blocks, name)
    header = next(rows, "")
    delimiter = max(",;\t", key=header.count)
    csv.field_size_limit(ROW)
    table = csv.DictReader(chain([header], rows), delimiter=delimiter, restkey="", restval="", strict=True)
    try:
        for row in table:
            columns = {column.strip(): value for column, value in row.items() if column}
            if any(columns.values()):
                yield from _document(columns, f"{name}, row at line {table.line_num:,}")
    except csv.Error as error:
        raise DataError(f"{name}, line {table.line_num:,} is no row: {error}", "Mend that line.") from None


def _parquet(path: Path, name: str, meter: Meter) -> Iterator[Document]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("Reading .parquet files", "pyarrow", "data") from None
    number = 0
    with _file_errors(name):
        try:
            with pyarrow.parquet.ParquetFile(path) as table:
                columns = [column for column in table.schema_arrow.names if column in _COLUMNS] or None
                for batch in table.iter_batches(batch_size=256, columns=columns):
                    for row in batch.to_pylist():
                        number += 1
                        yield from _document(row, f"{name}, row {number:,}")
        except pyarrow.ArrowException as error:
            raise DataError(f"{name} is no Parquet file: {error}", "Fetch or write it again.") from None
    meter.done += path.stat().st_size


READERS: dict[str, Callable[[Iterator[str], str, int], Iterator[Document]]] = {
    ".txt": _running_text,
    ".text": _running_text,
    ".md": _prose,
    ".markdown": _prose,
    ".rst": _prose,
    ".py": _code,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_lines,
    ".csv": _csv,
    ".tsv": _csv,
}
KNOWN = (*READERS, ".parquet")
"""The suffixes that a folder is searched for, each also with one of `COMPRESSIONS` behind it."""
