"""Kenga: a decoder of GPT-2's size that learns by itself, one batch at a time.

Its document draws an encoder without a causal mask, whose prediction of the next token would read that token. Here the
mask and learned positions are there, and norms stand before their parts; the numbers are those of the document.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from homespun.data.vocabulary import Bpe
from homespun.families.online import OnlineTrainer, Rows
from homespun.model.attention import GroupedAttention
from homespun.model.decoder import Decoder, ModelConfig
from homespun.model.feedforward import GELU
from homespun.model.norms import LayerNorm
from homespun.model.positions import LearnedPositions
from homespun.optim import AdamW, Constant, Cosine, Optimizer
from homespun.train.recipe import Recipe, TrainConfig


@dataclass(frozen=True)
class KengaConfig:
    """The document's settings under the document's names; `context`, which it does not give, is GPT-2's."""

    vocab_size: int = 50000
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    dropout: float = 0.1
    context: int = 1024

    def model(self, vocab: int | None) -> ModelConfig:
        """The same in Homespun's words."""
        return ModelConfig(
            vocab=vocab,
            width=self.hidden_size,
            layers=self.num_layers,
            context=self.context,
            attention=GroupedAttention(heads=self.num_heads, bias=True),
            feed_forward=GELU(hidden=self.intermediate_size, bias=True, approximate="tanh"),
            norm=LayerNorm(),
            positions=LearnedPositions(),
            dropout=self.dropout,
        )


KENGA = Recipe(
    name="kenga",
    model=KengaConfig().model(None),
    tokenizer=Bpe(size=KengaConfig.vocab_size),
    optimizer=AdamW(learning_rate=3e-4, schedule=Cosine(warmup=200, floor=0.1)),
    train=TrainConfig(tokens=2_500_000_000, batch_tokens=131072),
)
RECIPES = {KENGA.name: KENGA}


class KengaModel(Decoder):
    """The model as Kenga's document builds it: `model(ids)` (B, T) -> logits (B, T, vocab_size)."""

    def __init__(self, config: KengaConfig | None = None):
        config = config or KengaConfig()
        super().__init__(config.model(config.vocab_size))


class AutonomousTrainer:
    """Trains a model on batches as they come; the event loop stays free while it computes.

    `optimizer`: its schedule never ends, since nobody knows how many batches will come.
    """

    def __init__(self, model: Decoder, optimizer: Optimizer | None = None):
        self.model = model
        self._trainer = OnlineTrainer(model, optimizer or AdamW(learning_rate=3e-4, schedule=Constant(warmup=20)))

    @property
    def steps(self) -> int:
        """The updates made so far."""
        return self._trainer.steps

    async def train_step(self, batch: Rows) -> float:
        """One update of the next-token prediction; returns the mean loss in nats per token before it.

        `batch`: rows of token ids, (B, T). Raises `DataError` for ids that are none.
        """
        return await asyncio.to_thread(self._trainer.step, batch)
