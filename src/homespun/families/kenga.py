"""Kenga: a decoder of GPT-2's size with two heads that learns by itself, one batch at a time.

Its document draws an encoder without a causal mask, whose prediction of the next token would read that token. Here the
mask and learned positions are there, and norms stand before their parts; the numbers are those of the document.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from homespun.data.batches import Batch
from homespun.data.tokenizer import Tokenizer
from homespun.data.views import halves
from homespun.data.vocabulary import Bpe, Bytes
from homespun.families.online import OnlineTrainer, Rows, ids_of
from homespun.learn.autonomous import Learned, Learner, Limits
from homespun.learn.settings import LearnConfig
from homespun.learn.start import start_run
from homespun.model.attention import GroupedAttention
from homespun.model.decoder import Decoder, ModelConfig
from homespun.model.embedding import Embedding
from homespun.model.feedforward import GELU
from homespun.model.norms import LayerNorm
from homespun.model.positions import LearnedPositions
from homespun.objectives import Joint, Objective
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
            embedding=Embedding(size=self.hidden_size, pooling="mean", words=False),
        )


KENGA = Recipe(
    name="kenga",
    model=KengaConfig().model(None),
    tokenizer=Bpe(size=KengaConfig.vocab_size),
    objective=Joint(temperature=0.07),
    optimizer=AdamW(learning_rate=3e-4, schedule=Cosine(warmup=200, floor=0.1)),
    train=TrainConfig(tokens=2_500_000_000, batch_tokens=131072),
)
RECIPES = {KENGA.name: KENGA}


class KengaModel(Decoder):
    """The model as Kenga's document builds it: `model(ids)` (B, T) -> logits (B, T, vocab_size)."""

    def __init__(self, config: KengaConfig | None = None):
        config = config or KengaConfig()
        super().__init__(config.model(config.vocab_size))

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """The second head: a vector of length 1 for each row of ids (B, T), (B, hidden_size)."""
        hidden, _ = self.hidden(ids)
        return self.embedding(ids, hidden, torch.full((len(ids),), ids.size(1), device=ids.device))


class AutonomousTrainer:
    """Trains both heads of a model on batches as they come; the event loop stays free while it computes.

    `optimizer`: its schedule never ends, since nobody knows how many batches will come. `objective`: the recipe's.
    `losses`: those of the last step before it, by name: `loss` (next token), `contrastive`, and how the space of
    embeddings looks.
    """

    def __init__(self, model: Decoder, optimizer: Optimizer | None = None, objective: Objective | None = None):
        self.model = model
        self.losses: dict[str, float] = {}
        self._objective = objective or KENGA.objective
        self._optimizer = optimizer or AdamW(learning_rate=3e-4, schedule=Constant(warmup=20))
        self._trainer = OnlineTrainer(model, self._optimizer, self._objective)

    @property
    def steps(self) -> int:
        """The updates made so far."""
        return self._trainer.steps

    async def train_step(self, batch: Rows) -> float:
        """One update of both heads; returns the loss before it: nats per token, plus the weighted contrastive loss.

        `batch`: rows of token ids (B, T), each a text of its own, whose halves the second head learns to pair; or a
        batch with targets of its own. Raises `DataError` for ids that are none.
        """
        return await asyncio.to_thread(self._step, batch)

    async def run(
        self,
        sources: str | Sequence[str],
        folder: str | Path = "runs/kenga",
        tokenizer: Tokenizer | None = None,
        limits: Limits | None = None,
        settings: LearnConfig | None = None,
    ) -> Learned:
        """Learns from files, folders and other sources (docs/learning.md) in the run `folder`, which is made, or goes
        on from where it was. Without a `tokenizer` the vocabulary is the 256 bytes.

        `limits`: without any, all that is there is read once. The model then holds what the run has learned.
        """
        known = tokenizer or Bytes().build([], 0)[0]
        recipe = KENGA.model_copy(
            update={"model": self.model.config, "objective": self._objective, "optimizer": self._optimizer}
        )
        place = Path(folder)
        await asyncio.to_thread(start_run, place, recipe, self.model, known)
        learner = await asyncio.to_thread(Learner, place, recipe, known, self.model, settings)
        try:
            return await learner.run([sources] if isinstance(sources, str) else list(sources), limits)
        finally:
            learner.close()

    def _step(self, rows: Rows) -> float:
        self.losses = self._trainer.update(rows if isinstance(rows, Batch) else halves(ids_of(rows)))
        return self._objective.whole(self.losses)
