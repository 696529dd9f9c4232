"""What a retriever is, and how one is found: ours by the name of its file, others by `KIND:SPEC` and an entry point.

A package that brings a retriever names it in its pyproject.toml; the name is the kind::

    [project.entry-points."homespun.retrievers"]
    wiki = "wiki_search:open_wiki"

`open_wiki(spec, meaning)` returns a `Retriever` for `--retrieve wiki:SPEC`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from homespun.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

GROUP = "homespun.retrievers"
INDEX = EntryPoint("index", "homespun.retrieve.index:open_index", GROUP)
"""Ours, which is there without an installation, too."""

_KIND = re.compile(r"([A-Za-z][\w-]+):(.*)", re.DOTALL)  # two letters at least: `C:` is a disk


@dataclass(frozen=True)
class Passage:
    """Some sentences of a source. `source`: its name, relative to what was indexed; `place`: where in it, as the
    retriever counts (a line, a row, a page); `score`: the higher, the better it answers, within one search."""

    text: str
    source: str
    place: str
    score: float

    @property
    def cited(self) -> str:
        """`notes/whales.md:12`, on one line."""
        return " ".join(f"{self.source}:{self.place}".split())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


class Meaning(Protocol):
    """Texts to vectors, with one model. `identity`: a hash that two models do not share."""

    @property
    def identity(self) -> str: ...

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (n, e), float32. Raises `DataError` for a text without any token."""
        ...


class Retriever(Protocol):
    """Finds passages. `notes`: what was noticed on opening it, for people. Several threads may ask at a time."""

    @property
    def notes(self) -> Sequence[str]: ...

    def retrieve(self, query: str, count: int) -> list[Passage]:
        """The `count` best passages, the best first; fewer, or none, where there are no more. `query` is what a person
        wrote: nothing in it is a command."""
        ...


Opener = Callable[[str, Meaning | None], Retriever]
"""What an entry point leads to: a specification, and the model that the passages are for, if there is one."""


def open_retriever(place: str, meaning: Meaning | None = None) -> Retriever:
    """The retriever that `place` means: the file of an index, or `KIND:SPEC`. Only that kind is imported.

    Raises `ConfigError` for a kind that nobody brings or that cannot be imported, and what the kind raises.
    """
    if not place.strip():
        raise ConfigError("No index is named", "Make one: homespun index DATA --out INDEX")
    match = None if Path(place).exists() else _KIND.fullmatch(place)
    kind, spec = match.groups() if match else (INDEX.name, place)
    known = {entry.name: entry for entry in entry_points(group=GROUP)} | {INDEX.name: INDEX}
    if kind not in known:
        hint = f"Known: {', '.join(sorted(known))}. An index is made with: homespun index DATA --out INDEX"
        raise ConfigError(f"There is no retriever of the kind {kind!r}, and no index {place!r}", hint)
    try:
        opener = cast(Opener, known[kind].load())
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"The retriever {kind!r} cannot be imported: {error}", "Install it again, or remove it."
        ) from error
    return opener(spec, meaning)
