"""Updates one batch at a time, for the front doors that train on what they are given instead of on a corpus.

B rows, T tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from homespun.data.batches import Batch
from homespun.errors import DataError
from homespun.model.decoder import Decoder
from homespun.objectives import NextToken, Objective
from homespun.optim import Optimizer
from homespun.train.compiling import Compiling
from homespun.train.parallel import World
from homespun.train.precision import choose
from homespun.train.recipe import Recipe, TrainConfig
from homespun.train.update import Updater

Rows = Batch | Tensor | Sequence[Sequence[int]]
"""A batch, or rows of token ids (B, T) of which each token but the first is to be predicted from those before it."""


class OnlineTrainer:
    """Holds the optimizer of `model` and makes real updates: clipped, and without effect where they are not finite.

    The random numbers of the caller are left as they are. Updates are made one after the other, from any thread.
    """

    def __init__(self, model: Decoder, optimizer: Optimizer, objective: Objective | None = None):
        self.model, self.steps = model, 0
        world = World(0, 1, model.head_weight.device)
        recipe = Recipe(
            model=model.config,
            optimizer=optimizer,
            objective=objective or NextToken(),
            train=TrainConfig(precision="fp32"),
        )
        precision = choose("fp32", model, 1, world)
        self._updater = Updater(recipe, model, world, precision, Compiling("off", model, lambda note: None), 2**16)
        self._one_at_a_time = threading.Lock()

    def step(self, rows: Rows) -> float:
        """One update; returns the mean loss in nats per token before it. Raises `DataError` for impossible tokens."""
        return self.update(rows if isinstance(rows, Batch) else following(ids_of(rows)))["loss"]

    def update(self, batch: Batch) -> dict[str, float]:
        """One update; returns the mean losses before it by name, `loss` being that of the next token."""
        vocab = self.model.config.vocab or 0
        if not 0 <= int(batch.tokens.min()) <= max(int(batch.tokens.max()), int(batch.targets.max())) < vocab:
            raise DataError("A batch holds ids that the model does not know", f"They end at {vocab - 1:,}.")
        device = self.model.head_weight.device
        with self._one_at_a_time, torch.random.fork_rng([device] if device.type == "cuda" else []):
            training = self.model.training
            self.model.train()
            done = self._updater.step(batch, self.steps, 2**31)  # no end is known: the schedule stays before its fall
            self.model.train(training)
            self.steps += 1
        sums = {"loss": done.loss} | done.extra
        return {name: float(value) / max(done.count, 1) for name, value in sums.items()}


def ids_of(rows: Tensor | Sequence[Sequence[int]]) -> Tensor:
    """Rows of ids as a tensor (B, T). Raises `DataError` for what is none."""
    hint = "Give rows of 2 or more token ids, of one length: (rows, tokens)."
    try:
        ids = rows if isinstance(rows, Tensor) else torch.tensor([list(row) for row in rows])
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"A batch is not rows of token ids: {error}", hint) from None
    if ids.dim() != 2 or ids.size(1) < 2 or not len(ids):
        raise DataError(f"A batch has the form {tuple(ids.shape)}", hint)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise DataError(f"A batch holds {str(ids.dtype).removeprefix('torch.')}, which are no token ids", hint)
    return ids.long()


def following(ids: Tensor) -> Batch:
    """Each id but the first of a row is to be predicted from those before it."""
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
