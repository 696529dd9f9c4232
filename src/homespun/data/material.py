"""What a run learns from, and is measured on, as far as its training has to know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from homespun.data.batches import Batch
from homespun.data.tokenizer import Tokenizer


class Steps(Protocol):
    """`steps[step]` -> the rows of one process of the batch at `step`, a pure function of the seed and the step."""

    @property
    def batch_rows(self) -> int:
        """Rows of all processes together."""
        ...

    @property
    def tokens_per_step(self) -> int:
        """Tokens that are read in a step, over all processes (on average, where steps differ)."""
        ...

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which everything is shown once."""
        ...

    def __getitem__(self, step: int) -> Batch: ...


class Side(Protocol):
    """What there is to train on, or to validate with."""

    @property
    def tokens(self) -> np.ndarray:
        """All ids, (N,)."""
        ...

    @property
    def count(self) -> int:
        """How many."""
        ...


class Material(Protocol):
    """A corpus, or whatever else makes batches."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What it is encoded with."""
        ...

    @property
    def key(self) -> str:
        """A hash of all that it was made of."""
        ...

    @property
    def conversations(self) -> int:
        """How many documents with turns there are to train on."""
        ...

    @property
    def train(self) -> Side: ...
    @property
    def valid(self) -> Side: ...

    def batches(self, context: int, rows: int, seed: int, rank: int = 0, world: int = 1) -> Steps:
        """What is trained on, by the step; `rows`: of `context` tokens, in a batch of all processes."""
        ...

    def validation(self, context: int, rows: int, limit: int | None = None) -> Iterator[tuple[str, Batch]]:
        """What is measured on, in batches of up to `rows` rows, each with the name of its part ("": there are none);
        about `limit` targets at most."""
        ...
