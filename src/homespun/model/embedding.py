"""One vector for a text: pooling of hidden states, projection, unit length. B texts, T tokens, d width, e size."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homespun.config import Config, Count

Pooling = Literal["mean", "weighted", "last"]
"""The mean over a text's tokens; one in which a learned vector says how much each counts; or its last token, which has
read all others."""


class Embedding(Config):
    """The head that turns a text into a vector of `size` numbers."""

    size: Count = 128
    pooling: Pooling = "mean"

    def parameters(self, width: int) -> int:
        """The numbers that it learns."""
        return self.size * width + (width if self.pooling == "weighted" else 0)

    def build(self, width: int) -> EmbeddingHead:
        """The module, its weights not yet filled."""
        return EmbeddingHead(self, width)


class EmbeddingHead(nn.Module):
    """Pooling and a linear projection (d -> e), without a bias: one could make all texts alike."""

    def __init__(self, config: Embedding, width: int):
        super().__init__()
        self.pooling: Pooling = config.pooling
        self.weight = nn.Parameter(torch.empty(config.size, width))  # `initialize` fills it after all others
        self.score = nn.Parameter(torch.empty(1, width)) if config.pooling == "weighted" else None

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Hidden states (B, T, d) of texts of `lengths` (B,) tokens -> unit vectors (B, e), fp32."""
        with torch.autocast(hidden.device.type, enabled=False):  # so few products need no speed
            return unit(self.pooled(hidden.float(), lengths) @ self.weight.float().T)

    def pooled(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, d) -> (B, d), of the first `lengths` (B,) places alone; zeros for no place."""
        if self.pooling == "last":
            last = (lengths - 1).clamp(min=0)
            return hidden[torch.arange(len(hidden), device=hidden.device), last] * (lengths > 0)[:, None]
        return mean(hidden, lengths, None if self.score is None else hidden @ self.score.float()[0])


def mean(hidden: Tensor, lengths: Tensor, scores: Tensor | None = None) -> Tensor:
    """The mean of the first `lengths` (B,) places of hidden states (B, T, d), (B, d) in fp32; zeros for no place.

    `scores` (B, T): the logarithms of the weights that places have; none: they weigh the same.
    """
    scores = torch.zeros(hidden.shape[:2], device=hidden.device) if scores is None else scores
    beyond = torch.arange(hidden.size(1), device=hidden.device) >= lengths.clamp(min=1)[:, None]  # (B, T)
    weights = scores.masked_fill(beyond, -torch.inf).softmax(1) * (lengths > 0)[:, None]
    return (hidden.float().masked_fill(beyond[..., None], 0.0) * weights[..., None]).sum(1)


def unit(vectors: Tensor) -> Tensor:
    """Each vector at length 1, in fp32; zeros stay zeros."""
    return F.normalize(vectors.float(), dim=-1)
