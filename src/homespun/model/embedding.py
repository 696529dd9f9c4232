"""One vector for a text: pooling, projection, unit length. B texts, T tokens, d width, e size, V vocabulary."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homespun.config import Config, Count

Pooling = Literal["mean", "weighted", "last"]
"""The mean over a text's tokens; one in which learned numbers say how much each counts; or its last token, which has
read all others."""


class Embedding(Config):
    """The head that turns a text into a vector of `size` numbers.

    `words`: each token of the vocabulary has a vector of its own, beside what the layers make of it where it stands.
    A small model knows too little of meaning; which words a text has, and how rare they are, tells more.
    """

    size: Count = 256
    pooling: Pooling = "weighted"
    words: bool = True

    def parameters(self, width: int, vocab: int) -> int:
        """The numbers that it learns."""
        return (width + vocab * self.words) * (self.size + (self.pooling == "weighted"))

    def build(self, width: int, vocab: int) -> EmbeddingHead:
        """The module, its weights not yet filled."""
        return EmbeddingHead(self, width, vocab)


class EmbeddingHead(nn.Module):
    """Pools W h / d, of hidden states h, and the words' own vectors E[token]; no bias: one could make all texts alike.

    An update of Adam moves each number by about the learning rate, so a product with d of them d times as far. Divided
    by d it moves as fast as the words do; otherwise the states would drown them before anything is learned.
    """

    def __init__(self, config: Embedding, width: int, vocab: int):
        super().__init__()
        weighted = config.pooling == "weighted"
        self.pooling: Pooling = config.pooling
        self.weight = nn.Parameter(torch.empty(config.size, width))  # `initialize` fills all, after those of the model
        self.score = nn.Parameter(torch.empty(width)) if weighted else None
        self.words = nn.Parameter(torch.empty(vocab, config.size)) if config.words else None
        self.word_score = nn.Parameter(torch.empty(vocab, 1)) if config.words and weighted else None

    def forward(self, tokens: Tensor, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Texts of the first `lengths` (B,) tokens (B, T), hidden states (B, T, d) -> unit vectors (B, e), fp32."""
        with torch.autocast(hidden.device.type, enabled=False):  # so few products need no speed
            hidden = hidden.float().masked_fill(~within(lengths, hidden.size(1))[..., None], 0.0)
            weights = self.weights(tokens, hidden, lengths)
            found = (weights[:, None] @ hidden)[:, 0] @ self.weight.float().T / hidden.size(2)
            if self.words is not None:
                found = found + F.embedding_bag(tokens, self.words.float(), mode="sum", per_sample_weights=weights)
            return unit(found)

    def weights(self, tokens: Tensor, hidden: Tensor, lengths: Tensor) -> Tensor:
        """What each place of a text counts, (B, T), 1 in sum; 0 beyond its end, and everywhere where it has none."""
        there = within(lengths, hidden.size(1))
        if self.pooling == "last":
            return (there & ~within(lengths - 1, hidden.size(1))).float()
        scores = torch.zeros(there.shape, device=hidden.device)
        if self.score is not None:
            scores = scores + hidden @ self.score.float() / hidden.size(2)
        if self.word_score is not None:
            scores = scores + F.embedding(tokens, self.word_score.float())[..., 0]
        least = torch.finfo(scores.dtype).min  # not -inf: the softmax of a text without tokens would be NaN
        return scores.masked_fill(~there, least).softmax(1) * there


def within(lengths: Tensor, size: int) -> Tensor:
    """Which of `size` places are among the first `lengths` (B,), (B, size)."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def mean(hidden: Tensor, lengths: Tensor) -> Tensor:
    """The mean of the first `lengths` (B,) places of hidden states (B, T, d), (B, d) in fp32; zeros for no place."""
    there = within(lengths, hidden.size(1))[..., None]
    return hidden.float().masked_fill(~there, 0.0).sum(1) / lengths.clamp(min=1)[:, None]


def unit(vectors: Tensor) -> Tensor:
    """Each vector at length 1, in fp32; zeros stay zeros."""
    return F.normalize(vectors.float(), dim=-1)
