"""How good vectors of texts are: do they find the passage of a question, do they know which sentences are alike?

Always beside words alone (`lexical.py`): a figure without a companion says little. Q questions, P passages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from homespun.evaluate.lexical import bag_of_words, bm25

Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts to unit vectors (n, e)."""
Figures = dict[str, float]

PART = 256  # questions whose scores are in memory at a time


@dataclass(frozen=True)
class Retrieval:
    """Questions, passages, and which passages answer each question (their numbers)."""

    questions: list[str]
    passages: list[str]
    answers: list[set[int]]


@dataclass(frozen=True)
class Similarity:
    """Pairs of sentences, how alike people found each, and the set that each pair comes from."""

    first: list[str]
    second: list[str]
    scores: np.ndarray
    sets: list[str]


def retrieval(task: Retrieval, embed: Embed | None = None) -> dict[str, Figures]:
    """recall@1, recall@10, MRR and nDCG@10 of BM25, of bags of words and, if there is one, of the model."""
    tables = {"bm25": bm25, "bag of words": bag_of_words}
    found = {
        name: ranking_figures(table(task.questions, task.passages), task.answers) for name, table in tables.items()
    }
    if embed is not None:
        scores = cosines(embed(task.questions), embed(task.passages))
        found = {"model": ranking_figures(scores, task.answers)} | found
    return found


def cosines(questions: np.ndarray, passages: np.ndarray) -> Iterator[np.ndarray]:
    """Unit vectors (Q, e) and (P, e) -> the products (P,) of each question."""
    for first in range(0, len(questions), PART):
        yield from questions[first : first + PART] @ passages.T


def ranking_figures(scores: Iterable[np.ndarray], answers: Sequence[set[int]]) -> Figures:
    """Scores (P,) of each question -> the means over questions. Of passages with equal scores, the right ones count as
    the last."""
    ranks = [right_ranks(row, right) for row, right in zip(scores, answers, strict=True)]
    return {
        "recall@1": recall(ranks, 1),
        "recall@10": recall(ranks, 10),
        "mrr": float(np.mean([1 / places[0] for places in ranks])),
        "ndcg@10": float(np.mean([ndcg(places) for places in ranks])),
    }


def right_ranks(scores: np.ndarray, right: set[int]) -> np.ndarray:
    """Where the right passages stand in the order of scores (P,), from 1, the best first. Scores that are no number
    stand last."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    wrong = np.delete(scores, sorted(right))
    own = np.sort(scores[sorted(right)])[::-1]
    return np.array([1 + place + int((wrong >= score).sum()) for place, score in enumerate(own)])


def recall(ranks: Sequence[np.ndarray], limit: int) -> float:
    """The share of the right passages that stand among the first `limit`, the mean over questions."""
    return float(np.mean([(places <= limit).mean() for places in ranks]))


def ndcg(places: np.ndarray, limit: int = 10) -> float:
    """The discounted gain of the right passages at these ranks, relative to those of the best order."""
    gain = (1 / np.log2(1 + places[places <= limit])).sum()
    best = (1 / np.log2(1 + np.arange(1, min(len(places), limit) + 1))).sum()
    return float(gain / best)


def similarity(task: Similarity, embed: Embed | None = None) -> dict[str, Figures]:
    """Spearman's correlation with people's scores, over all pairs and as the mean over sets in which these differ: of
    bags of words and, if there is one, of the model."""
    texts = sorted({*task.first, *task.second})
    place = {text: number for number, text in enumerate(texts)}
    first, second = ([place[text] for text in side] for side in (task.first, task.second))
    words = [float(next(bag_of_words([a], [b]))[0]) for a, b in zip(task.first, task.second, strict=True)]
    found = {"bag of words": _correlations(np.array(words), task)}
    if embed is not None:
        vectors = embed(texts)
        found = {"model": _correlations((vectors[first] * vectors[second]).sum(1), task)} | found
    return found


def _correlations(scores: np.ndarray, task: Similarity) -> Figures:
    sets = np.array(task.sets)
    told = [sets == name for name in sorted(set(task.sets)) if len(set(task.scores[sets == name])) > 1]
    each = [spearman(scores[chosen], task.scores[chosen]) for chosen in told]
    return {"spearman": spearman(scores, task.scores), "mean of sets": float(np.mean(each)) if each else float("nan")}


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of ranks, ties sharing theirs; NaN where one side is constant or holds what is no number."""
    a, b = _ranks(one), _ranks(other)
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / size if size else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        return np.zeros(len(values))
    _, place, count = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks: np.ndarray = (last - (count - 1) / 2)[place]
    return ranks
