"""Predict the next token: the objective of language modelling. B batch, T tokens, V vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from homespun.config import Config, Count
from homespun.data.material import Material, Steps
from homespun.errors import ConfigError
from homespun.model.auxiliary import Auxiliary
from homespun.model.decoder import Decoder, ModelConfig
from homespun.objectives.contrastive import Gather, alone
from homespun.objectives.cross_entropy import IGNORED, chunked_cross_entropy, cross_entropy_parts, token_losses

__all__ = ["IGNORED", "Batch", "Losses", "NextToken", "NextTokenObjective", "chunked_cross_entropy", "token_losses"]


class Batch(Protocol):
    """What an objective needs of a batch."""

    @property
    def tokens(self) -> Tensor: ...  # (B, T) int64
    @property
    def targets(self) -> Tensor: ...  # (B, T) int64; IGNORED where nothing is asked


@dataclass(frozen=True)
class Losses:
    """Sums with their counts, to be divided once by the global count: exact under accumulation, masks and many devices.

    loss: the cross-entropy alone, in nats over `count` targets, for reports. total: what to differentiate, the loss and
    all that is added to it. extra: other losses by name, a sum and its count; those of the model's parts unweighted.
    counts: the tokens of each expert, by layer (`Auxiliary.counts`).
    """

    loss: Tensor
    count: int
    total: Tensor
    extra: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    counts: tuple[Tensor | None, ...] = ()


class CrossEntropy(Config):
    """What every objective here has. `z_loss`: weight of logsumexp^2, which keeps logits from drifting (PaLM: 1e-4).

    `chunk`: rows whose logits are in memory at one time; memory is chunk * vocab * 4 bytes.
    """

    z_loss: Annotated[float, Field(ge=0)] = 0.0
    chunk: Count = 512


class NextToken(CrossEntropy):
    """Cross-entropy of the next token."""

    kind: Literal["next_token"] = "next_token"

    def check(self, model: ModelConfig) -> None:
        """Raises `ConfigError` for a part of the model that it would leave untrained."""
        if model.embedding is not None:
            raise ConfigError(
                "model.embedding is trained by objective.kind=joint alone",
                "Set that, or model.embedding=null: a text is then the mean of its hidden states.",
            )

    def completed(self, model: ModelConfig) -> ModelConfig:
        """The model with the parts that this objective needs: none beside its own."""
        return model

    def batches(self, corpus: Material, context: int, rows: int, seed: int, rank: int, world: int) -> Steps:
        """What a run is trained on: `batches[step]` gives the rows of this rank."""
        return corpus.batches(context, rows, seed, rank, world)

    def build(self, gather: Gather = alone) -> NextTokenObjective:
        """The objective: `objective(decoder, batch) -> Losses`. Nothing of it depends on other processes."""
        return NextTokenObjective(self)

    def whole(self, losses: Mapping[str, float]) -> float:
        """The loss that is minimised, of mean losses by name: that of the next token."""
        return losses["loss"]

    def alarm(self, row: Mapping[str, Any]) -> str | None:
        """What a row of metrics gives cause to say: nothing."""
        return None


class NextTokenObjective:
    """Calls `decoder.hidden` and never makes the logits of a whole batch."""

    def __init__(self, config: NextToken):
        self.config = config

    def __call__(self, decoder: Decoder, batch: Batch) -> Losses:
        """The losses of a batch, with gradients where they are enabled."""
        return self.of(decoder, *decoder.hidden(batch.tokens), batch.targets)

    def of(self, decoder: Decoder, hidden: Tensor, auxiliary: Auxiliary, targets: Tensor) -> Losses:
        """The losses of hidden states (B, T, d) that were made already."""
        total, loss, z_loss, count = cross_entropy_parts(
            hidden.flatten(0, 1),
            decoder.head_weight,
            targets.flatten(),
            decoder.config.softcap,
            self.config.z_loss,
            self.config.chunk,
        )
        extra = {name: (value * count, count) for name, value in auxiliary.losses.items()}
        if self.config.z_loss:
            extra["z_loss"] = (z_loss, count)
        if auxiliary.penalty is not None:
            total = total + auxiliary.penalty * count  # a mean: it weighs as much as the targets of this batch
        return Losses(loss, count, total, extra, auxiliary.counts)

    @torch.no_grad()
    def token_losses(self, decoder: Decoder, batch: Batch) -> Tensor:
        """The loss of every target in nats, (B, T); 0 where it is IGNORED. No gradient."""
        hidden, _ = decoder.hidden(batch.tokens)
        flat = hidden.flatten(0, 1), decoder.head_weight, batch.targets.flatten()
        return token_losses(*flat, decoder.config.softcap, self.config.chunk).view_as(batch.targets)
