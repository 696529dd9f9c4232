"""Passages in the order of their words, of their meaning, and of both. P passages, e numbers of a vector."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence

import numpy as np

RANK = 60
QUERY = 64  # different words of a query that are looked for, the last ones

_WORD = re.compile(r"\w+")


def by_words(base: sqlite3.Connection, query: str, depth: int) -> list[int]:
    """The rows of the table `words` with any word of the query, by BM25 (SQLite's FTS5), up to `depth`.

    Each word stands in quotes, as FTS5 wants text: so no word of a query is an operator.
    """
    words = list(dict.fromkeys(reversed(_WORD.findall(query.lower()))))[:QUERY]
    if not words:
        return []
    asked = " OR ".join(f'"{word}"' for word in words)
    found = base.execute("SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank, rowid LIMIT ?", (asked, depth))
    return [row for (row,) in found]


def by_meaning(ids: np.ndarray, vectors: np.ndarray, vector: np.ndarray, depth: int) -> list[int]:
    """Those of `ids` (P,) whose vectors (P, e) are most like one (e,), up to `depth`."""
    return [int(number) for number in ids[np.argsort(-(vectors @ vector), kind="stable")[:depth]]]


def fused(rankings: Sequence[Sequence[int]], weights: Sequence[float]) -> list[tuple[int, float]]:
    """Reciprocal rank fusion (Cormack, Clarke and Buettcher, 2009): all that stands in the rankings, with the sum of
    weight / (60 + rank), the best first (of equals, what stands first in an earlier ranking)."""
    scores: dict[int, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, number in enumerate(ranking, 1):
            scores[number] = scores.get(number, 0.0) + weight / (RANK + rank)
    return sorted(scores.items(), key=lambda found: -found[1])
