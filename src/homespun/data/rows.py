"""Rows of unequal length, such as conversations: each a text of its own, of which only some tokens are asked for.

N tokens, C rows, B rows of a batch, T the longest of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch

from homespun.data.batches import IGNORED, Batch
from homespun.data.conversation import ASSISTANT, encode_asked
from homespun.data.formats import Document
from homespun.data.tokenizer import Tokenizer


def row_of(document: Document, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a conversation but its last, and what is asked behind each: the ids of answers, else IGNORED."""
    ids, asked = (np.array(each) for each in encode_asked(document, tokenizer))
    return ids[:-1], np.where(asked[1:], ids[1:], IGNORED)


def answers(document: Document) -> Iterator[str]:
    """What the assistant says in a conversation, answer by answer, without the white space around."""
    for piece, said in pairwise(document):
        if piece == ASSISTANT and isinstance(said, str):
            yield said.strip()


class Rows:
    """One side: what is read, and what is asked behind each token."""

    def __init__(self, rows: Sequence[tuple[np.ndarray, np.ndarray]]):
        self.lengths = np.array([len(tokens) for tokens, _ in rows], dtype=np.int64)  # (C,)
        self.starts = np.cumsum(self.lengths) - self.lengths
        empty = np.zeros(0, dtype=np.int64)
        self.tokens = np.concatenate([empty, *(tokens for tokens, _ in rows)])  # (N,)
        self.targets = np.concatenate([empty, *(targets for _, targets in rows)])  # (N,)

    @property
    def count(self) -> int:
        """Tokens of all rows."""
        return len(self.tokens)

    def batch(self, chosen: np.ndarray) -> Batch:
        """These rows (R,), padded on the right to the longest; for none of them, one row in which nothing is asked."""
        if not len(chosen):
            return Batch(torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1), IGNORED))
        lengths = self.lengths[chosen]
        inside = np.arange(lengths.max()) < lengths[:, None]  # (R, T)
        places = np.where(inside, self.starts[chosen][:, None] + np.arange(inside.shape[1]), 0)
        tokens, targets = np.where(inside, self.tokens[places], 0), np.where(inside, self.targets[places], IGNORED)
        return Batch(torch.from_numpy(tokens), torch.from_numpy(targets))
