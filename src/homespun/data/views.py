"""Pairs of texts that belong together: two views of one document, in a batch that is trained on as any other.

A row is always a whole window of the split, and every token of it is predicted. The view is only its beginning: in a
causal model nothing behind a place changes it, so the states of the first places are those of that text alone, and no
row is padded. As in `batches.py` a batch is a pure function of (seed, step).

P pairs, B = 2 P rows, T context, D documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from homespun.data.batches import IGNORED, Batch, Tokens, Windows, keys_of
from homespun.errors import ConfigError

Views = Literal["crops", "adjacent", "dropout"]
NOWHERE = -1
"""The document of a pair that is none: the text there is too short for two views."""


@dataclass(frozen=True)
class Pairs(Batch):
    """Rows 2 i and 2 i + 1 begin with the two views of a pair, which are their first `lengths` tokens."""

    lengths: Tensor  # (B,) int64; 0 where there is no pair
    documents: Tensor  # (B,) int64; NOWHERE where there is no pair

    def to(self, device: Any) -> Pairs:
        """The same batch on `device`."""
        return Pairs(*(each.to(device, non_blocking=True) for each in self._parts()))

    def split(self, rows: int) -> list[Batch]:
        """The same rows in parts of at most `rows`, but of two at least: a pair stays together."""
        parts = (each.split(max(2, rows - rows % 2)) for each in self._parts())
        return [Pairs(*part) for part in zip(*parts, strict=True)]

    def _parts(self) -> tuple[Tensor, ...]:
        return self.tokens, self.targets, self.lengths, self.documents


class PairedBatches:
    """`batches[step]` -> this rank's pairs of the global batch at `step` (0, 1, 2, ...).

    The split is cut into windows of two rows; where there is no pair, these are the rows. The first view begins where
    such a window begins, so documents are chosen in proportion to their length, and the second where `views` says.
    Lengths are drawn log-uniformly from `shortest` to `longest` tokens, as far as the document goes. Raises
    `ConfigError` for rows that make no two pairs or do not divide.
    """

    def __init__(
        self,
        split: Tokens,
        end: int,
        context: int,
        batch_rows: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        views: Views = "crops",
        shortest: int = 8,
        longest: int | None = None,
    ):
        if batch_rows < 4 or batch_rows % (2 * world):
            raise ConfigError(
                f"The {batch_rows} rows of a batch do not make pairs for each process ({world})",
                f"Make train.batch_tokens a multiple of {2 * world} x {context} tokens, and at least {4 * context}.",
            )
        self.rows, self.places = Windows(split, context, seed), Windows(split, 2 * context, seed)
        self.batch_rows, self.tokens_per_step = batch_rows, batch_rows * context
        self.seed, self.context, self.view = seed, context, VIEWS[views]
        self.shortest, self.longest = shortest, min(longest or context, context)
        self.ends = _ends(split.tokens, end)  # (D,): the place behind each document's last token
        share = batch_rows // 2 // world
        self._pairs = np.arange(rank * share, (rank + 1) * share)

    def __getitem__(self, step: int) -> Pairs:
        if step < 0:
            raise IndexError(f"there is no step {step}")
        numbers = step * (self.batch_rows // 2) + self._pairs
        place = self.places.places(numbers)
        document = np.searchsorted(self.ends, place)
        begin = np.where(document > 0, self.ends[document - 1] + 1, 0)
        draws = _fractions(self.seed, numbers)
        found = Room(place - begin, self.ends[document] - begin, self.context, self.shortest, self.longest, draws)
        starts, lengths = self.view(found)
        there = (lengths >= self.shortest).all(0)
        batch = self.rows.read(_rows(np.where(there, begin + starts, [place, place + self.context])))
        twice = there & (starts[0] == starts[1])  # what is read twice is learnt once
        batch.targets[1::2][torch.from_numpy(twice)] = IGNORED
        return Pairs(
            batch.tokens,
            batch.targets,
            torch.from_numpy(_rows(np.where(there, lengths, 0))),
            torch.from_numpy(_rows(np.where(there, [document, document], NOWHERE))),
        )

    @property
    def steps_per_epoch(self) -> float:
        """Steps that read as many tokens as the split has."""
        return self.rows.count / self.batch_rows


@dataclass(frozen=True)
class Room:
    """The documents in which views are to be placed: where in each a window begins (`near`), the `size` of each, random
    numbers in [0, 1) for each; (P,) and (k, P)."""

    near: np.ndarray
    size: np.ndarray
    context: int
    shortest: int
    longest: int
    draws: np.ndarray

    def lengths(self, most: np.ndarray) -> np.ndarray:
        """Of both views, at most `most` (2, P) tokens and the longest: (2, P), 0 where the shortest does not fit."""
        most = np.minimum(most, self.longest)
        ratio = np.maximum(most + 1, self.shortest) / self.shortest
        drawn = np.floor(self.shortest * ratio ** self.draws[:2]).astype(np.int64)
        return np.where(most < self.shortest, 0, np.minimum(drawn, most))


Placed = tuple[np.ndarray, np.ndarray]
"""Where the two views begin within their document, and their lengths: (2, P) each."""


def crops(room: Room) -> Placed:
    """Two crops at independent places, each at most half of the document; no more than half of the longer one is in
    both."""
    lengths = room.lengths(np.stack([room.size // 2] * 2))
    longer = lengths.max(0)
    places = np.maximum(room.size - longer + 1, 1)  # a ring of them: the distance is then alike in both directions
    first = np.minimum(room.near, places - 1)
    apart = np.minimum(longer // 2, places // 2)
    second = (first + apart + (room.draws[2] * (places - 2 * apart + 1)).astype(np.int64)) % places
    return np.stack([first, second]), lengths


def adjacent(room: Room) -> Placed:
    """The beginnings of two windows of the text that follow each other: the rows are those without pairs."""
    starts = np.stack([room.near, room.near + room.context])
    return starts, room.lengths(room.size - starts)


def dropout(room: Room) -> Placed:
    """The same span twice, which dropout alone makes two views (Gao et al., 2021)."""
    length = room.lengths(np.stack([room.size] * 2))[0]
    first = np.minimum(room.near, room.size - length)
    return np.stack([first, first]), np.stack([length, length])


VIEWS: dict[Views, Callable[[Room], Placed]] = {"crops": crops, "adjacent": adjacent, "dropout": dropout}


def halves(ids: Tensor) -> Pairs:
    """Rows of ids (R, T), each a document, as pairs of their two halves: every id but the first of a row is predicted
    once, in the row that holds the first half."""
    count, length = ids.shape
    cut = length // 2
    again = torch.zeros_like(ids[:, 1:])  # the second halves, padded
    again[:, : length - cut] = ids[:, cut:]
    first, second = (ids[:, :-1], ids[:, 1:]), (again, torch.full_like(again, IGNORED))
    tokens, targets = (torch.stack(each, dim=1).flatten(0, 1) for each in zip(first, second, strict=True))
    lengths = torch.tensor([cut, length - cut], device=ids.device).repeat(count)
    return Pairs(tokens, targets, lengths, torch.arange(count, device=ids.device).repeat_interleave(2))


def _rows(pairs: np.ndarray) -> np.ndarray:
    """(2, P) -> (2 P,), the two of a pair one behind the other."""
    return np.ascontiguousarray(pairs.T).reshape(-1)


def _fractions(seed: int, numbers: np.ndarray) -> np.ndarray:
    """Random numbers in [0, 1) that belong to each of `numbers` (P,), several: (k, P)."""
    words = keys_of(seed ^ 0xD1B54A32D192ED03, numbers)  # another seed than that of the order of the windows
    fractions: np.ndarray = (words >> np.uint64(11)) / np.float64(2**53)
    return fractions


def _ends(tokens: np.ndarray, end: int, part: int = 2**24) -> np.ndarray:
    """The places of the end token, and the end of the split."""
    tokens = np.asarray(tokens)
    found = [start + np.flatnonzero(tokens[start : start + part] == end) for start in range(0, len(tokens), part)]
    return np.concatenate([*found, [len(tokens)]]).astype(np.int64)
