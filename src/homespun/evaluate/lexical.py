"""Words alone, without a model: what embeddings have to beat."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower())


def bag_of_words(queries: Sequence[str], passages: Sequence[str]) -> np.ndarray:
    """Cosines of the counts of words, (queries, passages)."""
    place: dict[str, int] = {}
    for text in (*queries, *passages):
        for word in words(text):
            place.setdefault(word, len(place))

    def counts(texts: Sequence[str]) -> np.ndarray:
        found = np.zeros((len(texts), max(len(place), 1)), dtype=np.float32)
        for row, text in enumerate(texts):
            for word, count in Counter(words(text)).items():
                found[row, place[word]] = count
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)

    cosines: np.ndarray = counts(queries) @ counts(passages).T
    return cosines


def bm25(queries: Sequence[str], passages: Sequence[str], k1: float = 1.2, b: float = 0.75) -> np.ndarray:
    """Scores (queries, passages) of Robertson's BM25, with the inverse document frequency that is never negative."""
    held = [Counter(words(passage)) for passage in passages]
    lengths = np.array([sum(counts.values()) for counts in held], dtype=np.float64)
    scale = k1 * (1 - b + b * lengths / max(lengths.mean(), 1.0)) if len(held) else lengths
    postings: dict[str, list[int]] = {}
    for number, counts in enumerate(held):
        for word in counts:
            postings.setdefault(word, []).append(number)
    scores = np.zeros((len(queries), len(passages)))
    for row, query in enumerate(queries):
        for word in words(query):
            found = postings.get(word, [])
            rarity = math.log(1 + (len(held) - len(found) + 0.5) / (len(found) + 0.5))
            for number in found:
                count = held[number][word]
                scores[row, number] += rarity * count * (k1 + 1) / (count + scale[number])
    return scores
