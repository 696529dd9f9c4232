"""Batches as a pure function of (seed, step): nothing to save or to fast-forward, the same for any number of ranks.

The tokens of a split are read as a ring, cut into windows of `context` targets from a starting point that differs in
every epoch; the order of the windows is a permutation computed element by element (a Feistel network with cycle
walking), so that neither memory nor time grows with the corpus.

B rows of the global batch, T context, N tokens of the split, W windows of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from homespun.errors import ConfigError, DataError

IGNORED = -100
"""A target that no loss counts."""

_ROUNDS = 6


class Tokens(Protocol):
    """What batches need of a split of a corpus."""

    @property
    def tokens(self) -> np.ndarray: ...  # (N,) any integer type, usually memory-mapped


@dataclass(frozen=True)
class Batch:
    """Token ids and, one place later in the text, what should follow each of them."""

    tokens: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64; IGNORED where nothing is asked

    def to(self, device: Any) -> Batch:
        """The same batch on `device`."""
        return Batch(self.tokens.to(device, non_blocking=True), self.targets.to(device, non_blocking=True))

    def split(self, rows: int) -> list[Batch]:
        """The same rows in parts of at most `rows`."""
        return [Batch(*part) for part in zip(self.tokens.split(rows), self.targets.split(rows), strict=True)]


class Windows:
    """`windows[numbers]` -> windows of `context` tokens of a split by their numbers (R,), however large these are.

    Each run of `count` numbers is an epoch: it shows every window once, in an order and from a starting point of its
    own. A split shorter than one window is one padded window, again and again. Raises `DataError` for fewer than 2
    tokens.
    """

    def __init__(self, split: Tokens, context: int, seed: int):
        self._tokens = _view(split)
        self.context, self.seed = context, seed
        self.count = len(self._tokens) // context if len(self._tokens) > context else 1

    def __getitem__(self, numbers: np.ndarray) -> Batch:
        return self.read(self.places(numbers))

    def places(self, numbers: np.ndarray) -> np.ndarray:
        """Where the windows begin, (R,)."""
        epoch, index = np.divmod(numbers, self.count)
        keys = keys_of(self.seed, epoch)
        window = permute(index, self.count, keys[1:])
        size = len(self._tokens)
        phase = (keys[0] % np.uint64(size)).astype(np.int64)
        return (phase + window * self.context) % size if size > self.context else np.zeros_like(window)

    def read(self, places: np.ndarray) -> Batch:
        """The windows that begin at `places` (R,) of the split, as a ring where it is longer than one window."""
        if len(self._tokens) <= self.context:
            return _windows(self._tokens, places, self.context)
        whole = places[:, None] + np.arange(self.context + 1)
        rows = self._tokens[whole % len(self._tokens)].astype(np.int64)  # (R, T + 1)
        return _batch(rows[:, :-1], rows[:, 1:])


class Batches:
    """`batches[step]` -> the rows of this rank, of the global batch of `batch_rows` rows, at `step` (0, 1, 2, ...).

    The rows are `Windows` of a split in their order; batches run on across the border of epochs. Rank r of `world`
    gets rows [r * B / world, (r + 1) * B / world). Raises `ConfigError` for rows that do not divide.
    """

    def __init__(self, split: Tokens, context: int, batch_rows: int, seed: int, rank: int = 0, world: int = 1):
        self._rows = share_of_rows(batch_rows, context, rank, world)
        self._windows = Windows(split, context, seed)
        self.places, self.read = self._windows.places, self._windows.read
        self.context, self.batch_rows, self.seed = context, batch_rows, seed
        self.windows, self.tokens_per_step = self._windows.count, batch_rows * context

    def __getitem__(self, step: int) -> Batch:
        if step < 0:
            raise IndexError(f"there is no step {step}")
        return self._windows[step * self.batch_rows + self._rows]

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which every window is shown once; rarely a whole number."""
        return self.windows / self.batch_rows


def share_of_rows(batch_rows: int, context: int, rank: int, world: int) -> np.ndarray:
    """The numbers of the rows of a global batch that are `rank`'s. Raises `ConfigError` for rows that do not divide."""
    if batch_rows < 1 or batch_rows % world:
        raise ConfigError(
            f"A batch of {batch_rows} rows does not divide among {world} processes",
            f"Make train.batch_tokens a multiple of {world} x {context} tokens.",
        )
    share = batch_rows // world
    return np.arange(rank * share, (rank + 1) * share)


def validation_batches(split: Tokens, context: int, rows: int, limit: int | None = None) -> Iterator[Batch]:
    """The split in order, in batches of up to `rows` windows: every target exactly once, the last window padded.

    `limit` bounds the number of targets: whole windows, spread evenly over the split. The last batch may have fewer
    rows. A split of fewer than 2 tokens gives nothing.
    """
    tokens = np.asarray(split.tokens)
    windows = -(-(len(tokens) - 1) // context) if len(tokens) > 1 else 0
    shown = windows if limit is None else min(windows, max(1, limit // context))
    chosen = np.arange(shown) * windows // max(shown, 1)
    for first in range(0, shown, rows):
        yield _windows(tokens, chosen[first : first + rows] * context, context)


def permute(index: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Where each `index` (R,) in [0, size) goes under a keyed permutation of [0, size); keys (rounds, R) uint64.

    The permutation is one of the least power of two that holds `size`; a result past `size` is permuted again until it
    falls inside (cycle walking), which is fewer than two rounds on average and keeps it a permutation.
    """
    bits = max(size - 1, 1).bit_length()
    low = np.uint64(bits // 2)
    low_mask, high_mask = np.uint64((1 << (bits // 2)) - 1), np.uint64((1 << (bits - bits // 2)) - 1)
    result = np.zeros(len(index), dtype=np.uint64)
    value, open_rows = index.astype(np.uint64), np.arange(len(index))
    while size > 1 and len(open_rows):
        left, right = value >> low, value & low_mask
        for turn in range(0, len(keys), 2):  # each half is changed by a function of the other: a bijection
            left = left ^ (_mix(right ^ keys[turn]) & high_mask)
            right = right ^ (_mix(left ^ keys[turn + 1]) & low_mask)
        value = (left << low) | right
        inside = value < size
        result[open_rows[inside]] = value[inside]
        value, open_rows, keys = value[~inside], open_rows[~inside], keys[:, ~inside]
    return result.astype(np.int64)


def keys_of(seed: int, epoch: np.ndarray) -> np.ndarray:
    """(1 + rounds, R) uint64: a random number and the round keys for `permute`, of each row's epoch (R,)."""
    start = np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
    turns = np.arange(1, _ROUNDS + 2, dtype=np.uint64)[:, None]
    return _mix(_mix(_mix(start) + epoch.astype(np.uint64)) + turns)


def _mix(value: np.ndarray) -> np.ndarray:
    """A 64-bit hash: the finaliser of SplitMix64 (Steele, Lea, Flood 2014) after its constant step."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _windows(tokens: np.ndarray, starts: np.ndarray, context: int) -> Batch:
    """The windows that begin at `starts` (R,): past the end of the split rows are padded, targets ignored."""
    places = starts[:, None] + np.arange(context + 1)
    rows = tokens[np.minimum(places, len(tokens) - 1)].astype(np.int64)
    return _batch(rows[:, :-1], np.where(places[:, 1:] < len(tokens), rows[:, 1:], IGNORED))


def _batch(tokens: np.ndarray, targets: np.ndarray) -> Batch:
    return Batch(torch.from_numpy(np.ascontiguousarray(tokens)), torch.from_numpy(np.ascontiguousarray(targets)))


def _view(split: Tokens) -> np.ndarray:
    tokens = np.asarray(split.tokens)  # a plain view: indexing an np.memmap costs more
    if len(tokens) < 2:
        raise DataError(f"There are only {len(tokens)} tokens to learn from", "Give more text.")
    return tokens
