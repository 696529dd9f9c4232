"""Pages and feeds of the web, or whatever else fsspec opens: read only where a person named the address.

The only file of the project that can open a connection.
"""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from typing import Any

from homespun.data.text import cut
from homespun.errors import DataError, MissingExtraError
from homespun.learn.sources import PIECE, Cursors, Part

MOST = 16 * 2**20  # bytes of one answer
POLITE = 60.0  # seconds between two looks at an address
_TAGS = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->|<[^>]+>", re.DOTALL | re.IGNORECASE)


@dataclass
class Web:
    """An address: a feed (RSS or Atom), whose entries are texts, or a page, whose text is cut at blank lines."""

    name: str
    domain: str
    lasting: bool = True
    every: float = POLITE

    def changes(self, cursors: Cursors) -> Iterator[Part]:
        data = self._read()
        mark = hashlib.sha256(data).hexdigest()
        if cursors("") != mark:
            yield Part("", tuple(texts_of(data, self.name)), mark)

    def _read(self) -> bytes:
        try:
            import fsspec
        except ImportError:
            raise MissingExtraError("Reading an address", "fsspec[http]", "data") from None
        try:
            with fsspec.open(self.name, "rb") as file:
                data: bytes = file.read(MOST + 1)
        except ImportError as error:
            raise DataError(f"{self.name} cannot be read: {error}", "Install what fsspec asks for.") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{self.name} cannot be read: {error}", "Check the address and the network.") from None
        if len(data) > MOST:
            raise DataError(f"{self.name} has more than {MOST:,} bytes", "Fetch it, and name the file.")
        return data


def texts_of(data: bytes, name: str) -> list[str]:
    """The texts of a feed or of a page. Raises `DataError` for a feed that declares entities, or is damaged."""
    text = data.decode("utf-8", "replace")
    head = text[:2048].lower()
    if "<rss" in head or "<feed" in head or "<rdf:rdf" in head:
        return _feed(text, name)
    if "<html" in head or "<!doctype html" in head:
        text = unescape(_TAGS.sub("\n", text))
    return [part for part in cut([text], PIECE) if part.strip()]


def _feed(text: str, name: str) -> list[str]:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities may grow without bound
        raise DataError(f"The feed {name} declares entities", "Fetch it, and name a file of its text.")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"The feed {name} is damaged: {error}", "Try again later.") from None
    entries = [each for each in root.iter() if _tag(each) in ("item", "entry")]
    found = [_entry(each) for each in entries]
    return [each for each in found if each]


def _entry(entry: Any) -> str:
    parts = {_tag(part): "".join(part.itertext()) for part in entry}
    body = next((parts[tag] for tag in ("encoded", "content", "description", "summary") if parts.get(tag)), "")
    return "\n\n".join(unescape(_TAGS.sub(" ", part)).strip() for part in (parts.get("title", ""), body) if part)


def _tag(element: Any) -> str:
    return str(element.tag).rsplit("}", 1)[-1].lower()
