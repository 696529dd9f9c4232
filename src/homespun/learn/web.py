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
from urllib.parse import urljoin, urlsplit

from homespun.data.text import BLOCK, cut
from homespun.errors import DataError, MissingExtraError
from homespun.learn.parts import PART, PIECE, Cursors, Part

MOST = 16 * 2**20  # bytes of one answer
SECONDS = 30.0  # for one answer
POLITE = 60.0  # seconds between two looks at an address
_CODE = re.compile(r"<(script|style)\b", re.IGNORECASE)
_TAGS = re.compile(r"<[^<>]+>")
_ENCODING = re.compile(rb"<\?xml[^<>]*encoding=[\"']([\w.-]+)|<meta[^<>]*charset=[\"']?([\w.-]+)", re.IGNORECASE)


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
        if cursors("") == mark:
            return
        texts = texts_of(data, self.name)
        for first in range(0, len(texts), PART):
            yield Part("", tuple(texts[first : first + PART]))
        yield Part("", (), mark)

    def _read(self) -> bytes:
        try:
            import fsspec
        except ImportError:
            raise MissingExtraError("Reading an address", "fsspec", "web") from None
        elsewhere: list[str] = []
        options = _http(self.name, elsewhere) if self.name.lower().startswith("http") else {}
        try:
            with fsspec.open(self.name, "rb", **options) as file:
                data = _whole(file)
        except ImportError as error:
            raise DataError(f"{self.name} cannot be read: {error}", "Install what fsspec asks for.") from None
        except Exception as error:  # each protocol of fsspec has errors of its own
            if elsewhere:
                raise DataError(f"{self.name} leads to {elsewhere[0]}", "Name that address, if you trust it.") from None
            why = error.__cause__ or error
            told = ": ".join(filter(None, (type(why).__name__, " ".join(str(why).split()).rstrip("."))))
            raise DataError(f"{self.name} cannot be read: {told}", "Check the address and the network.") from None
        if len(data) > MOST:
            raise DataError(f"{self.name} has more than {MOST:,} bytes", "Fetch it, and name the file.")
        return data


def _http(name: str, elsewhere: list[str]) -> dict[str, Any]:
    """How fsspec shall read an address: in limited time, and never from another host than the named one."""
    try:
        import aiohttp
    except ImportError:
        raise MissingExtraError("Reading the web", "aiohttp", "web") from None

    async def stay(session: Any, context: Any, told: Any) -> None:
        target = urljoin(str(told.url), told.response.headers.get("Location", ""))
        here, there = urlsplit(name), urlsplit(target)
        if there.hostname != here.hostname or there.port not in (here.port, None):
            elsewhere.append(target)
            raise aiohttp.ClientError(target)

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(stay)
    client = {"timeout": aiohttp.ClientTimeout(total=SECONDS), "trace_configs": [trace]}
    return {"block_size": 0, "client_kwargs": client, "skip_instance_cache": True}


def _whole(file: Any) -> bytes:
    """What a file holds, `MOST` bytes and a little more of it; a stream may give less at a time than it is asked."""
    found, size = [], 0
    while size <= MOST and (block := file.read(BLOCK)):
        found.append(block)
        size += len(block)
    return b"".join(found)


def texts_of(data: bytes, name: str) -> list[str]:
    """The texts of a feed or of a page. Raises `DataError` for a feed that declares entities, or is damaged."""
    text = _decoded(data)
    head = text[:2048].lower()
    if "<rss" in head or "<feed" in head or "<rdf:rdf" in head:
        return _feed(text, name)
    if "<html" in head or "<!doctype html" in head:
        text = _visible(text)
    return [part for part in cut([text], PIECE) if part.strip()]


def _decoded(data: bytes) -> str:
    """As text: in the encoding that its head declares, or as UTF-8."""
    found = _ENCODING.search(data[:2048])
    declared = (found[1] or found[2]).decode("ascii") if found else "utf-8"
    try:
        return data.decode(declared, "replace")
    except LookupError:
        return data.decode("utf-8", "replace")


def _visible(page: str) -> str:
    """The text of a page without comments, scripts and tags, in time linear in its length."""
    kept, place = [], 0
    while (found := _CODE.search(page, place)) is not None:
        kept.append(page[place : found.start()])
        end = re.compile(f"</{found[1]}", re.IGNORECASE).search(page, found.end())
        place = end.start() if end else len(page)
    page = "".join([*kept, page[place:]])
    first, *others = page.split("<!--")
    page = first + "".join(part.partition("-->")[2] for part in others)
    return unescape(_TAGS.sub("\n", page))


def _feed(text: str, name: str) -> list[str]:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities may grow without bound
        raise DataError(f"The feed {name} declares entities", "Fetch it, and name a file of its text.")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"The feed {name} is damaged: {error}", "Try again later.") from None
    places = [root, *(each for each in root if _tag(each) == "channel")]  # one entry is never inside another
    found = [_entry(each) for place in places for each in place if _tag(each) in ("item", "entry")]
    return [each for each in found if each]


def _entry(entry: Any) -> str:
    parts = {_tag(part): "".join(part.itertext()) for part in entry}
    body = next((parts[tag] for tag in ("encoded", "content", "description", "summary") if parts.get(tag)), "")
    return "\n\n".join(_visible(part).strip() for part in (parts.get("title", ""), body) if part)


def _tag(element: Any) -> str:
    return str(element.tag).rsplit("}", 1)[-1].lower()
