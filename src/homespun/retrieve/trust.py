"""How far ranks by meaning are to be trusted beside those by words, measured on the passages themselves."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing

import numpy as np

from homespun.retrieve.protocol import Meaning
from homespun.retrieve.ranking import by_meaning, by_words, fused

WEIGHTS = (1.0, 0.5, 0.2, 0.1, 0.05)
PASSAGES = 300  # of a trial, which is enough
QUESTION = 10  # words of its questions


def trusted(texts: Sequence[str], meaning: Meaning) -> float:
    """That of `WEIGHTS` with which passages are found best (1 / rank, in the mean), if it is better than words alone by
    more than the standard error of the difference; else 0, so that meaning only adds to what words find.

    Each text is cut in two, and the first words of its first half, in small letters as people type, have to find its
    second half among those of all others. Vectors of a model that learned little push down what the words found.
    """
    halves = [(words[: len(words) // 2], words[len(words) // 2 :]) for words in map(str.split, texts)]
    questions = [" ".join(first[:QUESTION]).lower() for first, _ in halves if first]
    answers = [" ".join(second) for first, second in halves if first]
    if len(questions) < 2:
        return 0.0
    with closing(sqlite3.connect(":memory:")) as base:
        base.execute("CREATE VIRTUAL TABLE words USING fts5 (text)")
        base.executemany("INSERT INTO words VALUES (?)", ((answer,) for answer in answers))
        words = [by_words(base, question, len(answers)) for question in questions]
    vectors, ids = meaning.embed(answers), np.arange(1, len(answers) + 1)
    meanings = [by_meaning(ids, vectors, vector, len(answers)) for vector in meaning.embed(questions)]
    pairs = list(zip(words, meanings, strict=True))
    alone = _worth(pairs, 0.0)
    gains = {weight: _worth(pairs, weight) - alone for weight in WEIGHTS}
    sure = {
        weight: gain.mean() for weight, gain in gains.items() if gain.mean() > gain.std(ddof=1) / np.sqrt(len(pairs))
    }
    return max(sure, key=lambda weight: sure[weight], default=0.0)


def _worth(pairs: Sequence[tuple[list[int], list[int]]], weight: float) -> np.ndarray:
    """1 / rank of the right passage of each question, (Q,); they are numbered from 1 in the order of the questions."""
    orders = [[number for number, _ in fused(pair, (1.0, weight))] for pair in pairs]
    return np.array([1 / (1 + order.index(number)) for number, order in enumerate(orders, 1)])
