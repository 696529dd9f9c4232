"""Words alone, without a model: what embeddings have to beat. P passages."""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

_WORD = re.compile(r"\w+")
_NOWHERE = np.zeros(0, dtype=np.int64), np.zeros(0)

Postings = dict[str, tuple[np.ndarray, np.ndarray]]
"""Of each word the numbers of the passages that hold it, and how often each does."""


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower())


def bag_of_words(queries: Sequence[str], passages: Sequence[str]) -> Iterator[np.ndarray]:
    """Cosines (P,) of the counts of words, for each query."""
    postings, _ = _postings(passages)
    squares = np.zeros(len(passages))
    for numbers, counts in postings.values():
        squares[numbers] += counts**2
    for query in queries:
        asked = Counter(words(query))
        products = np.zeros(len(passages))
        for word, count in asked.items():
            numbers, counts = postings.get(word, _NOWHERE)
            products[numbers] += count * counts
        yield products / np.maximum(np.sqrt(squares * sum(count**2 for count in asked.values())), 1e-12)


def bm25(queries: Sequence[str], passages: Sequence[str], k1: float = 1.2, b: float = 0.75) -> Iterator[np.ndarray]:
    """Scores (P,) of Robertson's BM25, with the inverse document frequency that is never negative, for each query."""
    postings, lengths = _postings(passages)
    scale = k1 * (1 - b + b * lengths / max(lengths.mean(), 1.0)) if len(lengths) else lengths
    for query in queries:
        scores = np.zeros(len(passages))
        for word in words(query):
            numbers, counts = postings.get(word, _NOWHERE)
            rarity = math.log(1 + (len(passages) - len(numbers) + 0.5) / (len(numbers) + 0.5))
            scores[numbers] += rarity * counts * (k1 + 1) / (counts + scale[numbers])
        yield scores


def _postings(passages: Sequence[str]) -> tuple[Postings, np.ndarray]:
    """Where words stand, and how many each passage has, (P,)."""
    found: dict[str, tuple[array[int], array[float]]] = {}
    lengths = np.zeros(len(passages))
    for number, passage in enumerate(passages):
        for word, count in Counter(words(passage)).items():
            numbers, counts = found.setdefault(word, (array("q"), array("d")))
            numbers.append(number)
            counts.append(count)
            lengths[number] += count
    return {word: (np.array(numbers), np.array(counts)) for word, (numbers, counts) in found.items()}, lengths
