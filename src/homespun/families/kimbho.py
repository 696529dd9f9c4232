"""Kimbho V1: grouped-query attention, rotary positions, RMSNorm; the defaults of its document.

Its document's `group_size` means a chunk of query positions; grouped-query attention in the literature means query
heads that share a key-value head. Here both are true: 8 heads share 2 key-value heads in groups of 4, and
`query_chunk` takes the queries in chunks where that is asked. Results do not depend on the chunk.
"""

from __future__ import annotations

import torch

from homespun.data.vocabulary import Bpe
from homespun.errors import ConfigError
from homespun.model.attention import GroupedAttention
from homespun.model.decoder import Decoder, ModelConfig
from homespun.model.feedforward import SwiGLU
from homespun.model.norms import RMSNorm
from homespun.model.positions import RotaryPositions
from homespun.optim import AdamW, Constant
from homespun.train.recipe import Recipe, TrainConfig

SEQ_LEN, BATCH_SIZE = 32, 16


def model_config(
    vocab_size: int | None, emb_dim: int, num_heads: int, num_blocks: int, group_size: int, rope_base: float
) -> ModelConfig:
    """Kimbho's architecture in Homespun's words: `group_size` heads share one key-value head."""
    if num_heads % group_size:
        raise ConfigError(f"group_size = {group_size} does not divide num_heads = {num_heads}", "Choose a divisor.")
    return ModelConfig(
        vocab=vocab_size,
        width=emb_dim,
        layers=num_blocks,
        context=SEQ_LEN,
        attention=GroupedAttention(heads=num_heads, kv_heads=num_heads // group_size),
        feed_forward=SwiGLU(),
        norm=RMSNorm(),
        positions=RotaryPositions(base=rope_base),
        tie_embeddings=False,
    )


V1 = Recipe(
    name="kimbho-v1",
    model=model_config(None, emb_dim=64, num_heads=8, num_blocks=2, group_size=4, rope_base=10000.0),
    tokenizer=Bpe(size=1000),
    optimizer=AdamW(learning_rate=1e-4, betas=(0.9, 0.999), weight_decay=0.01, schedule=Constant(warmup=0)),
    train=TrainConfig(epochs=3, batch_tokens=SEQ_LEN * BATCH_SIZE),
)
RECIPES = {V1.name: V1}


class KimbhoV1Model(Decoder):
    """The model as Kimbho's document builds it: `model(ids)` (B, T) -> logits (B, T, vocab_size).

    `pad_idx`: the token that fills short rows; its embedding is zero and stays so (none: no such token).
    """

    def __init__(
        self,
        vocab_size: int = 1000,
        emb_dim: int = 64,
        num_heads: int = 8,
        num_blocks: int = 2,
        pad_idx: int | None = 0,
        group_size: int = 4,
        rope_base: float = 10000.0,
    ):
        super().__init__(model_config(vocab_size, emb_dim, num_heads, num_blocks, group_size, rope_base))
        if pad_idx is not None:
            if not 0 <= pad_idx < vocab_size:
                raise ConfigError(f"pad_idx = {pad_idx} is no token of {vocab_size}", "Choose one below vocab_size.")
            embedding = self.model.embed_tokens
            embedding.padding_idx = pad_idx  # its gradient stays zero
            with torch.no_grad():
                embedding.weight[pad_idx] = 0.0
