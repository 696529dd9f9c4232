"""A decoder that says what a vector means: the vector becomes a few embeddings in front of the text.

B batch, T tokens, e size of the vector, C patterns, P places of the prefix, d width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homespun.model.cache import LayerCache
from homespun.model.decoder import Decoder, ModelConfig

PREFIX = 8
"""Places that a vector takes (the prefix of vec2text, Morris et al., 2023)."""


class PrefixedDecoder(nn.Module):
    """`decoder` behind a prefix made of a vector (B, e).

    Of the vector it sees how it differs from others, z (B, e): `mean` is taken off, and `spread` stretches what varies
    little (whitening; `fit` sets both). A codebook of `patterns` is attended to by z; what is found goes into the
    prefix beside z itself.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, size: int, patterns: int, config: ModelConfig):
        super().__init__()
        self.size = size
        self.decoder = Decoder(config)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("spread", torch.eye(size))
        self.codebook = nn.Parameter(torch.randn(patterns, size))
        self.hidden_layer = nn.Linear(2 * size, 4 * size)
        self.prefix_layer = nn.Linear(4 * size, PREFIX * config.width)
        with torch.no_grad():  # a prefix as large as the embeddings that the layers know
            scale = self.decoder.model.embed_tokens.weight.std()
            self.prefix_layer.weight.normal_(std=float(scale) / math.sqrt(size))
            self.prefix_layer.bias.zero_()

    @property
    def context(self) -> int:
        """Tokens of text that it reads at most."""
        return self.decoder.config.context - PREFIX

    @torch.no_grad()
    def fit(self, vectors: Tensor) -> None:
        """Learns from many vectors (B, e) how they differ: z has the mean 0, and the variance 1 where there is any."""
        self.mean.copy_(vectors.mean(0))
        variances, directions = torch.linalg.eigh((vectors - self.mean).T.double().cov())
        scale = (variances.clamp(min=0) + 1e-3 * variances.mean()).rsqrt()
        self.spread.copy_(directions * scale @ directions.T)

    def patterns(self, vectors: Tensor) -> Tensor:
        """How much each pattern is part of the vectors (B, e): (B, C), of sum 1."""
        return self._patterns((vectors - self.mean) @ self.spread)

    def prefix(self, vectors: Tensor, noise: Tensor | float = 0.0) -> Tensor:
        """Vectors (B, e) -> what stands before the text, (B, P, d). `noise` is added to z."""
        z = (vectors - self.mean) @ self.spread + noise
        both = torch.cat([z, self._patterns(z) @ self.codebook], dim=-1)
        return self.prefix_layer(F.gelu(self.hidden_layer(both))).unflatten(-1, (PREFIX, -1))

    def _patterns(self, z: Tensor) -> Tensor:
        return (z @ self.codebook.T / math.sqrt(self.size)).softmax(-1)

    def hidden(self, tokens: Tensor, prefix: Tensor | None = None, cache: Sequence[LayerCache] | None = None) -> Tensor:
        """Hidden states of tokens (B, T) behind a prefix, those of its last place first: (B, 1 + T, d).

        Without a prefix the tokens follow those in the cache: (B, T, d).
        """
        trunk = self.decoder.model
        x = trunk.embed_tokens(tokens)
        if prefix is not None:
            x = torch.cat([prefix.to(x.dtype), x], dim=1)
        start = cache[0].length if cache is not None else 0
        x = trunk.dropout(trunk.embed_positions(x, start, None))
        caches: Sequence[LayerCache | None] = cache if cache is not None else [None] * len(trunk.layers)
        for block, layer_cache in zip(trunk.blocks(), caches, strict=True):
            x, _ = block(x, layer_cache)
        hidden: Tensor = trunk.norm(x)
        return hidden if prefix is None else hidden[:, PREFIX - 1 :]

    def losses(self, vectors: Tensor, tokens: Tensor, targets: Tensor, noise: Tensor | float = 0.0) -> Tensor:
        """The loss of each target (B, 1 + T) in nats, of texts whose tokens (B, T) are read; 0 where it is -100."""
        hidden = self.hidden(tokens, self.prefix(vectors, noise))
        logits = self.decoder.logits(hidden).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def turn(size: int, dim: int) -> Tensor:
    """The fixed matrix (size, dim) that makes thoughts of embeddings: lengths and angles stay where dim >= size."""
    generator = torch.Generator().manual_seed(7)
    square = torch.linalg.qr(torch.randn(max(size, dim), max(size, dim), generator=generator))[0]
    return square[:size, :dim].contiguous()
