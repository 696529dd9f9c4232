"""From a source of text to passages: some sentences that stand together, with their place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from homespun.data.formats import PIECE, Document, Meter, has_lines, opened
from homespun.data.sources import File, Source
from homespun.data.text import END_OF_TEXT, cut

LEAST = 60  # words, where a paragraph ends; before, the next one is joined to it
MOST = 120
LETTERS = 10  # characters that count as a word at least: some scripts have no spaces

_ENDS = (  # the coarsest first; a finer one only where the text between would be too long
    re.compile(r"\n[ \t]*\n\s*"),  # paragraphs
    re.compile(r"(?:[.!?…][\"'”’»)\]]{0,3}\s+|[。！？])"),  # sentences
    re.compile(r"\n"),
    re.compile(r"\s+"),
)


def passages_of(source: Source) -> Iterator[tuple[str, str]]:
    """`(place, text)` of each passage: the number of its first line in running text, else that of its document.

    Raises `DataError` where the source cannot be read.
    """
    if isinstance(source, File) and has_lines(source.path):
        yield from _numbered_lines(source)
        return
    for number, document in enumerate(source.documents(PIECE, Meter()), 1):
        yield from ((str(number), text) for _, text in passages(_plain(document)))


def _numbered_lines(source: File) -> Iterator[tuple[str, str]]:
    line = 1
    with opened(source.path, source.name, Meter()) as blocks:
        for piece in cut(blocks, PIECE):
            start = 0
            ends = [(match.start(), match.end()) for match in END_OF_TEXT.finditer(piece + "\n")]
            for end, following in [*ends, (len(piece), len(piece))]:
                for offset, text in passages(piece[start:end]):
                    yield str(line + piece.count("\n", 0, start + offset)), text
                start = following
            line += piece.count("\n")


def passages(text: str) -> Iterator[tuple[int, str]]:
    """`(offset, passage)`: of 60 to 120 words where paragraphs end so, never more, cut between sentences if possible.

    Nothing but white space is lost between them.
    """
    start = end = size = 0
    for stop, closing in _units(text, 0, len(text), 0):
        more = _size(text[end:stop])
        if size and size + more > MOST:
            yield from _passage(text, start, end)
            start, size = end, 0
        end, size = stop, size + more
        if closing and size >= LEAST:
            yield from _passage(text, start, end)
            start, size = end, 0
    yield from _passage(text, start, end)


def _units(text: str, begin: int, end: int, level: int) -> Iterator[tuple[int, bool]]:
    """Where each part ends that is not to be cut, and whether a paragraph does there."""
    if level == len(_ENDS):
        yield from (
            (min(edge, end), False) for edge in range(begin + MOST * LETTERS, end + MOST * LETTERS, MOST * LETTERS)
        )
        return
    edges = [begin, *(match.end() for match in _ENDS[level].finditer(text, begin, end)), end]
    for left, right in pairwise(edges):
        if _size(text[left:right]) > MOST:
            units = [*_units(text, left, right, level + 1)]
            yield from units[:-1]
            yield right, level == 0
        elif left < right:
            yield right, level == 0


def _plain(document: Document) -> str:
    """Turns of a conversation are set apart by plain words."""
    return "".join(part if isinstance(part, str) else part.marker for part in document)


def _size(text: str) -> int:
    return max(len(text.split()), -(-len(text.strip()) // LETTERS))


def _passage(text: str, start: int, end: int) -> Iterator[tuple[int, str]]:
    part = text[start:end]
    if found := part.strip():
        yield start + len(part) - len(part.lstrip()), found
