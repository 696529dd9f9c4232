"""Text in blocks: decoding, cutting into documents, splitting into lines. Only some megabytes are ever in memory."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from homespun.errors import DataError

BLOCK = 1 << 20  # bytes read at a time
LONGEST = 1 << 20  # characters of one document between two end-of-text lines
ROW = 1 << 26  # characters of one row

END_OF_TEXT = re.compile(r"^<\|endoftext\|>[ \t]*\n", re.MULTILINE)
"""A line that ends a document, as in the dumps of TinyStories."""

_BLANK_LINES = re.compile(r"\n[ \t]*\n(?:[ \t]*\n)*")
_MARKS = (  # the longer mark first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode(stream: Any, name: str) -> Iterator[str]:
    """The text of a byte stream in blocks: UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    The mark is dropped, and a Windows line end becomes a newline; a lone carriage return stays.
    Raises `DataError` with the offset of the first byte that is no such text.
    """
    head = stream.read(BLOCK)
    encoding = next((encoding for mark, encoding in _MARKS if head.startswith(mark)), "utf-8")
    if encoding.startswith("utf-8") and head.count(0) * 10 > len(head):
        offset = head.index(0)
        raise DataError(
            f"{name} is no text: it is full of zero bytes, the first at offset {offset:,}",
            "Give a text file; UTF-16 needs its byte order mark.",
        )
    decoder = codecs.getincrementaldecoder(encoding)()
    offset, pending, block = 0, "", head
    while True:
        try:
            text = pending + decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise _undecodable(name, encoding, error, offset + len(block)) from None
        pending = text[-1:] if block and text.endswith("\r") else ""  # its newline may come with the next block
        if text := text[: len(text) - len(pending)].replace("\r\n", "\n"):
            yield text
        if not block:
            return
        offset += len(block)
        block = stream.read(BLOCK)


def _undecodable(name: str, encoding: str, error: UnicodeDecodeError, end: int) -> DataError:
    """`end`: where in the file the bytes `error.object` end, which begin with what was left undecided before."""
    offset = end - len(error.object) + error.start
    what = "a binary file" if 0 in error.object else f"not {encoding.removesuffix('-sig').upper()} text"
    return DataError(
        f"{name} is {what}: the byte 0x{error.object[error.start]:02x} at offset {offset:,} cannot be read as text",
        "Give a text file; one in another encoding is converted with: iconv -f LATIN1 -t UTF-8 OLD > NEW",
    )


def cut(blocks: Iterable[str], piece: int) -> Iterator[str]:
    """Cuts text into documents whose concatenation is exactly the text, wherever the borders of the blocks lie.

    A cut comes at the first blank line after `piece` characters; before four times as many, at the last line end, at
    the last space, or (in a text without any) in the middle.
    """
    rest = ""
    for block in blocks:
        rest += block
        start = 0
        while len(rest) - start > 4 * piece:  # enough is known for a decision that no later block can change
            end = _boundary(rest, start, piece)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    while len(rest) > piece:
        end = _boundary(rest, 0, piece)
        yield rest[:end]
        rest = rest[end:]
    if rest:
        yield rest


def _boundary(text: str, start: int, piece: int) -> int:
    least, most = start + piece, min(start + 4 * piece, len(text))
    if match := _BLANK_LINES.search(text, least, most):
        return match.end()
    if most == len(text) and most - start < 4 * piece:
        return most
    newline = text.rfind("\n", least, most)
    return 1 + newline if newline >= 0 else 1 + text.rfind(" ", least, most) or most


def cut_marked(blocks: Iterable[str]) -> Iterator[str]:
    """Cuts text at lines that hold only `<|endoftext|>`; neither they nor the newlines around a document are kept."""
    rest = ""
    for block in chain(blocks, ["\n"]):  # the last line may lack its end
        *whole, rest = END_OF_TEXT.split(rest + block)
        while len(rest) > LONGEST:
            end = _boundary(rest, 0, LONGEST // 4)
            whole.append(rest[:end])
            rest = rest[end:]
        yield from (text for text in (part.strip("\n") for part in whole) if text)
    if rest := rest.strip("\n"):
        yield rest


def lines(blocks: Iterable[str], name: str) -> Iterator[str]:
    """Lines with their newline; only a newline ends a line, since JSON strings and texts may hold U+2028 and others."""
    rest = ""
    for block in blocks:
        *whole, last = block.split("\n")
        if whole:
            yield rest + whole[0] + "\n"
            yield from (line + "\n" for line in whole[1:])
            rest = last
        else:
            rest += last
        if len(rest) > ROW:
            raise DataError(f"{name} has a row of more than {ROW:,} characters", "Split that row, or give it as .txt.")
    if rest:
        yield rest
