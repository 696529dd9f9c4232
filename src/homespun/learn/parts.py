"""What a source gives: texts in small parts, every part with the cursor that stands behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from homespun.data.formats import Document

PART = 64  # texts
PIECE = 2048  # characters after which running text is cut at the next blank line


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


def plain(document: Document) -> str:
    """A document as text; turns of a conversation are set apart by plain words."""
    return "".join(part if isinstance(part, str) else part.marker for part in document)
