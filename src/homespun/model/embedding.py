"""One vector for a text: pooling of hidden states, projection, unit length. B texts, T tokens, d width, e size."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homespun.config import Config, Count

Pooling = Literal["mean", "last"]
"""The mean over a text's tokens, or its last token, which has read all others."""


class Embedding(Config):
    """The head that turns a text into a vector of `size` numbers."""

    size: Count = 128
    pooling: Pooling = "mean"

    def build(self, width: int) -> EmbeddingHead:
        """The module, its weights not yet filled."""
        return EmbeddingHead(self, width)


class EmbeddingHead(nn.Module):
    """Pooling and a linear projection (d -> e), without a bias: one could make all texts alike."""

    def __init__(self, config: Embedding, width: int):
        super().__init__()
        self.pooling: Pooling = config.pooling
        self.weight = nn.Parameter(torch.empty(config.size, width))  # `initialize` fills it after all others

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Hidden states (B, T, d) of texts of `lengths` (B,) tokens -> unit vectors (B, e), fp32."""
        with torch.autocast(hidden.device.type, enabled=False):  # so few products need no speed
            return unit(pooled(hidden, lengths, self.pooling) @ self.weight.float().T)


def pooled(hidden: Tensor, lengths: Tensor, pooling: Pooling = "mean") -> Tensor:
    """Hidden states (B, T, d) -> (B, d) in fp32, of the first `lengths` (B,) places alone; zeros for no place."""
    if pooling == "last":
        last = (lengths - 1).clamp(min=0)
        return hidden[torch.arange(len(hidden), device=hidden.device), last].float() * (lengths > 0)[:, None]
    real = torch.arange(hidden.size(1), device=hidden.device) < lengths[:, None]  # (B, T)
    total = hidden.float().masked_fill(~real[..., None], 0.0).sum(1)
    return total / lengths.clamp(min=1)[:, None]


def unit(vectors: Tensor) -> Tensor:
    """Each vector at length 1, in fp32; zeros stay zeros."""
    return F.normalize(vectors.float(), dim=-1)
