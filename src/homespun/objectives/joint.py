"""Predict the next token and tell texts apart: both from one forward (Kenga's two heads). B rows, P = B / 2 pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from homespun.config import Count
from homespun.data.material import Material, Steps
from homespun.data.views import PairedBatches, Pairs, Views
from homespun.errors import ConfigError
from homespun.model.decoder import Decoder, ModelConfig
from homespun.model.embedding import Embedding
from homespun.objectives.contrastive import Gather, alone, figures, info_nce
from homespun.objectives.next_token import Batch, CrossEntropy, Losses, NextToken, NextTokenObjective

COLLAPSED = 0.1
"""The spread below which embeddings hardly differ any more."""


class Joint(CrossEntropy):
    """Next-token prediction, and a contrastive loss on pairs of views of one document: see docs/embeddings.md.

    `weight`: of the contrastive loss (nats for a pair) beside the other (nats for a token); at 0 this is `next_token`,
    bit for bit. `views`: two `crops` of a document, `adjacent` windows, or one span under two masks of `dropout`.
    `temperature`: divides the cosines. `shortest`, `longest`: tokens of a view (none: up to the context).
    """

    kind: Literal["joint"] = "joint"
    weight: Annotated[float, Field(ge=0)] = 0.1
    views: Views = "crops"
    temperature: Annotated[float, Field(gt=0)] = 0.05
    shortest: Count = 8
    longest: Count | None = None

    def check(self, model: ModelConfig) -> None:
        """Raises `ConfigError` where the two views would be equal, or longer than the context."""
        if self.views == "dropout" and not model.dropout:
            raise ConfigError(
                "objective.views = dropout needs model.dropout: without it both views are the same",
                "Set model.dropout=0.1, or objective.views=crops.",
            )
        longest = min(self.longest or model.context, model.context)
        if self.shortest > longest:
            raise ConfigError(
                f"objective.shortest = {self.shortest} is longer than the longest view of {longest} tokens",
                "Make it smaller, or model.context larger.",
            )

    def completed(self, model: ModelConfig) -> ModelConfig:
        """The model with an embedding head; without a weight nothing would train one."""
        return model.model_copy(update={"embedding": (model.embedding or Embedding()) if self.weight else None})

    def batches(self, corpus: Material, context: int, rows: int, seed: int, rank: int, world: int) -> Steps:
        """Pairs of views; without a weight the batches of `next_token`."""
        if not self.weight:
            return corpus.batches(context, rows, seed, rank, world)
        return PairedBatches(
            corpus.train, corpus.tokenizer.end, context, rows, seed, rank, world,
            self.views, self.shortest, self.longest,
        )  # fmt: skip

    def build(self, gather: Gather = alone) -> JointObjective:
        """The objective: `objective(decoder, batch) -> Losses`. Batches that are no pairs have the first loss only."""
        return JointObjective(self, gather)

    def whole(self, losses: Mapping[str, float]) -> float:
        """The loss that is minimised, of mean losses by name."""
        return losses["loss"] + self.weight * losses.get("contrastive", 0.0)

    def alarm(self, row: Mapping[str, Any]) -> str | None:
        """What a row of metrics gives cause to say."""
        if row.get("contrastive") == 0.0:
            return (
                "A batch held no two documents that are long enough for two views each, so that there was nothing to "
                "tell apart. If that is so at every step, more documents or a smaller objective.shortest will help."
            )
        spread = row.get("spread")
        if spread is None or not spread < COLLAPSED:
            return None
        return (
            f"The embeddings have collapsed: their spread is {spread:.3f} (even: 1), so that all texts look alike. A "
            "lower learning rate, more rows in a batch or a larger objective.weight may help."
        )


class JointObjective:
    """Both losses of a batch of `Pairs`; the negatives are the other pairs of the forward, of all processes."""

    def __init__(self, config: Joint, gather: Gather = alone):
        self.config, self.gather = config, gather
        self.next_token = NextTokenObjective(NextToken(z_loss=config.z_loss, chunk=config.chunk))

    def __call__(self, decoder: Decoder, batch: Batch) -> Losses:
        """The losses of a batch, with gradients where they are enabled."""
        if not isinstance(batch, Pairs):
            return self.next_token(decoder, batch)
        hidden, auxiliary = decoder.hidden(batch.tokens)
        losses = self.next_token.of(decoder, hidden, auxiliary, batch.targets)
        documents, there = batch.documents[::2], batch.documents[::2] >= 0
        with torch.autocast(hidden.device.type, enabled=False):
            vectors = decoder.embedding(batch.tokens, hidden, batch.lengths)
            first, second = vectors.unflatten(0, (-1, 2)).unbind(1)  # (P, e) each
            contrastive = info_nce(first, second, documents, self.config.temperature, self.gather).sum()
            seen = figures(first[there], second[there])
        share = losses.count / len(documents)  # targets for a pair: the same in every part of a batch, so sums add up
        extra = {"contrastive": (contrastive.detach() * share, losses.count)}
        extra |= {name: (value * losses.count, losses.count) for name, value in seen.items()}
        total = losses.total + self.config.weight * share * contrastive
        return replace(losses, total=total, extra=losses.extra | extra)

    @torch.no_grad()
    def token_losses(self, decoder: Decoder, batch: Batch) -> Tensor:
        """The loss of every target in nats, (B, T); 0 where it is IGNORED. No gradient."""
        return self.next_token.token_losses(decoder, batch)
