"""How far ranks by meaning are to be trusted beside those by words, measured on the passages themselves."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing

import numpy as np

from homespun.retrieve.protocol import Meaning
from homespun.retrieve.ranking import by_meaning, by_words, fused

WEIGHTS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.0)
PASSAGES = 300  # of a trial, which is enough
QUESTION = 10  # words of its questions


def trusted(texts: Sequence[str], meaning: Meaning) -> float:
    """The largest of `WEIGHTS` with which passages are found as well as by words alone: 1 / rank, in the mean.

    Each text is cut in two, and the first words of its first half have to find its second half
    among those of all others. Vectors of a model that learned little only push down what the words found.
    """
    halves = [(words[: len(words) // 2], words[len(words) // 2 :]) for words in map(str.split, texts)]
    questions = [" ".join(first[:QUESTION]) for first, _ in halves if first]
    answers = [" ".join(second) for first, second in halves if first]
    if len(questions) < 2:
        return WEIGHTS[0]
    with closing(sqlite3.connect(":memory:")) as base:
        base.execute("CREATE VIRTUAL TABLE words USING fts5 (text)")
        base.executemany("INSERT INTO words VALUES (?)", ((answer,) for answer in answers))
        words = [by_words(base, question, len(answers)) for question in questions]
    vectors, ids = meaning.embed(answers), np.arange(1, len(answers) + 1)
    meanings = [by_meaning(ids, vectors, vector, len(answers)) for vector in meaning.embed(questions)]
    worth = {
        weight: sum(
            _worth(fused(pair, (1.0, weight)), number)
            for number, pair in enumerate(zip(words, meanings, strict=True), 1)
        )
        for weight in WEIGHTS
    }
    return next(weight for weight in WEIGHTS if worth[weight] >= worth[0.0])


def _worth(found: Sequence[tuple[int, float]], right: int) -> float:
    return 1 / (1 + [number for number, _ in found].index(right))
