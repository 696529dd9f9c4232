"""The decoder: embedding, blocks, final norm, head. B batch, T tokens, d width, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from homespun.config import Config, Count
from homespun.errors import ConfigError
from homespun.model.attention import Attention, GroupedAttention
from homespun.model.auxiliary import Auxiliary
from homespun.model.block import Block
from homespun.model.cache import LayerCache
from homespun.model.embedding import Embedding, mean, unit
from homespun.model.feedforward import FeedForward, SwiGLU
from homespun.model.initialize import initialize
from homespun.model.norms import Norm, RMSNorm
from homespun.model.positions import Positions, RotaryPositions


class ModelConfig(Config):
    """The architecture. `vocab`: none means the tokenizer's size. `context`: the longest sequence it is trained on.

    `softcap`: logits become softcap * tanh(logits / softcap). `initialize`: see `initialize.py`. `embedding`: the head
    for vectors of whole texts; none: they are the means of the hidden states.
    """

    vocab: Annotated[Count, Field(le=2**24)] | None = None
    width: Annotated[Count, Field(le=2**16)] = 384
    layers: Annotated[Count, Field(le=1000)] = 6
    context: Annotated[Count, Field(le=2**20)] = 256
    attention: Attention = GroupedAttention(heads=6)
    feed_forward: FeedForward = SwiGLU()
    norm: Norm = RMSNorm()
    positions: Positions = RotaryPositions()
    tie_embeddings: bool = True
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    softcap: Annotated[float, Field(gt=0)] | None = None
    initialize: Literal["gpt2", "zero"] = "gpt2"
    embedding: Embedding | None = None

    @model_validator(mode="after")
    def _possible(self) -> ModelConfig:
        self.attention.check(self)
        self.feed_forward.check(self)
        return self


class Trunk(nn.Module):
    """Everything below the head; its parameters carry Hugging Face's names."""

    def __init__(self, config: ModelConfig, vocab: int):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, config.width)
        self.embed_positions = config.positions.at_input(config.width, config.context)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = config.norm.build(config.width)

    def embed(self, tokens: Tensor, start: int = 0, padding: Tensor | None = None) -> Tensor:
        """Token ids (B, T) -> what the first layer reads, (B, T, d)."""
        return self.dropout(self.embed_positions(self.embed_tokens(tokens), start, padding))

    def blocks(self) -> Iterator[Block]:
        """The layers, from the bottom to the top."""
        return iter(self.layers)  # type: ignore[arg-type]


class Decoder(nn.Module):
    """A causal language model: `model(tokens)` gives the logits of every next token.

    `checkpoint_activations` trades time for memory in training: each block is computed again in the backward.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        if config.vocab is None:
            raise ConfigError("model.vocab is not set", "Set it, or train with a tokenizer that sets it.")
        self.config = config
        self.checkpoint_activations = False
        self.model = Trunk(config, config.vocab)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.width, config.vocab, bias=False)
        self.embedding_head = config.embedding.build(config.width, config.vocab) if config.embedding else None
        initialize(self)

    @property
    def head_weight(self) -> Tensor:
        """The matrix (V, d) that turns hidden states into logits; with tied embeddings, the embedding itself."""
        return self.model.embed_tokens.weight if self.config.tie_embeddings else self.lm_head.weight

    def hidden(self, tokens: Tensor, cache: Sequence[LayerCache] | None = None) -> tuple[Tensor, Auxiliary]:
        """Token ids (B, T) -> normed hidden states (B, T, d) and the parts' own losses. Every objective starts here.

        With a cache from `new_cache`, the tokens follow those already in it.
        """
        caches: Sequence[LayerCache | None] = cache if cache is not None else [None] * len(self.model.layers)
        start, padding = (cache[0].length, cache[0].padding) if cache is not None else (0, None)
        x = self.model.embed(tokens, start, padding)
        reports = []
        for block, layer_cache in zip(self.model.blocks(), caches, strict=True):
            if self.checkpoint_activations and torch.is_grad_enabled() and layer_cache is None:
                x, report = checkpoint(block, x, use_reentrant=False)
            else:
                x, report = block(x, layer_cache)
            reports.append(report)
        return self.model.norm(x), Auxiliary.merge(reports)

    def rebalance(self, counts: Sequence[Tensor | None]) -> None:
        """After an update: tells each layer how many tokens its experts took, as `Auxiliary.counts` of all its batches
        summed."""
        for block, taken in zip(self.model.blocks(), counts, strict=True):
            if taken is not None:
                block.rebalance(taken)

    @torch.no_grad()
    def largest_scores(self, tokens: Tensor) -> Iterator[tuple[Block, Tensor]]:
        """Reads tokens (B, T) layer by layer: each block, and the largest score of each head of its attention, (H,).

        A block goes on only when the next one is asked for, so what the caller did to it counts for those above.
        """
        x = self.model.embed(tokens)
        for block in self.model.blocks():
            yield block, block.largest_scores(x)
            x, _ = block(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., d) -> logits (..., V), the softcap applied."""
        logits = F.linear(hidden, self.head_weight)
        if self.config.softcap is not None:
            logits = self.config.softcap * torch.tanh(logits.float() / self.config.softcap)
        return logits

    def embedding(self, tokens: Tensor, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Texts of `lengths` (B,) of the tokens (B, T), from the left, hidden states (B, T, d) -> a unit vector each,
        (B, e)."""
        if self.embedding_head is None:
            return unit(mean(hidden, lengths))
        vectors: Tensor = self.embedding_head(tokens, hidden, lengths)
        return vectors

    def forward(self, tokens: Tensor, cache: Sequence[LayerCache] | None = None) -> Tensor:
        """Token ids (B, T) -> logits (B, T, V)."""
        return self.logits(self.hidden(tokens, cache)[0])

    def new_cache(self, batch: int, capacity: int, padding: Tensor | None = None) -> list[LayerCache]:
        """One empty cache for each layer: `batch` rows of up to `capacity` tokens.

        `padding` (B,): how many slots on the left of each row are empty, for prompts of different lengths.
        """
        return [block.new_cache(batch, capacity, padding) for block in self.model.blocks()]
