"""One optimizer step: gradients of a global batch, the finite check, the update."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from homespun.data.batches import Batch
from homespun.model.decoder import Decoder
from homespun.objectives.next_token import Losses
from homespun.optim import clip_attention, clip_gradients, set_learning_rate
from homespun.train.compiling import Compiling
from homespun.train.guard import FiniteGuard
from homespun.train.parallel import World
from homespun.train.precision import Precision
from homespun.train.recipe import Recipe
from homespun.train.usage import Counts, add


@dataclass(frozen=True)
class Stepped:
    """What a step did: the sum of the losses (nats) over `count` targets of all processes, and what went with it.

    extra: other losses by name, as sums over as many targets. counts: the tokens of each expert, by layer.
    largest_score: of all heads of attention, before they were clipped; none where they were not measured.
    """

    loss: Tensor
    count: int
    gradient_norm: Tensor
    learning_rate: float
    updated: bool
    extra: dict[str, Tensor]
    counts: Counts
    largest_score: Tensor | None = None


class Updater:
    """Turns batches into updates of the model. All state that must be saved: optimizer, `precision`, `finite`."""

    def __init__(
        self, recipe: Recipe, model: Decoder, world: World, precision: Precision, compiling: Compiling, micro_rows: int
    ):
        self.recipe, self.model, self.world = recipe, model, world
        self.precision, self.compiling, self.micro_rows = precision, compiling, micro_rows
        self.objective = recipe.objective.build(world.gather)
        self.optimizer = recipe.optimizer.build(model)
        self.finite = FiniteGuard(recipe.train.max_bad_steps)

    def step(self, batch: Batch, step: int, total: int) -> Stepped:
        """One update from this process's part of a global batch, at step `step` of `total`.

        A step whose loss or gradient is not finite changes nothing and is counted; too many in a row raise
        `TrainingError`. Dropout is seeded by the step, so nothing of it needs saving.
        """
        settings = self.recipe.optimizer
        torch.manual_seed((self.recipe.train.seed << 32) + (step << 8) + self.world.rank)
        loss, count, extra, counts = self._gradients(batch.to(self.world.device))
        norm = clip_gradients(self.model.parameters(), settings.clip)
        factor = settings.schedule.factor(step, total)
        set_learning_rate(self.optimizer, factor)
        updated = self._good(loss, norm) and count > 0
        if updated:
            self.optimizer.step()
            self.precision.stepped()
            self.model.rebalance(counts)
        self.optimizer.zero_grad(set_to_none=True)
        score = self._clip_attention(batch, step) if updated else None
        return Stepped(loss, count, norm, factor * settings.learning_rate, updated, extra, counts, score)

    def _clip_attention(self, batch: Batch, step: int) -> Tensor | None:
        """The largest score of attention over the first micro-batch of each process, where the recipe asks for it."""
        settings = self.recipe.optimizer
        if settings.qk_clip is None or step % settings.qk_clip_every:
            return None
        tokens = batch.tokens[: self.micro_rows].to(self.world.device)
        self.model.eval()  # without dropout
        with self.precision.autocast(self.world.device):
            score = clip_attention(self.model, tokens, settings.qk_clip, self.world.largest)
        self.model.train()
        return score

    def _good(self, loss: Tensor, norm: Tensor) -> bool:
        if not bool(torch.isfinite(norm) & torch.isfinite(loss)) and self.precision.overflowed():
            return False  # fp16: the loss scale was too large, the next step tries a smaller one; nothing is wrong
        return self.finite.check(loss, norm)

    def _gradients(self, batch: Batch) -> tuple[Tensor, int, dict[str, Tensor], Counts]:
        """Gradients of (sum of losses) / (global count of targets). Over all processes: the sum of the losses and their
        count, the sums of other losses by name, the tokens of each expert by layer."""
        count = int(self.world.sum((batch.targets >= 0).sum()))
        parts = []
        for part in batch.split(self.micro_rows):
            losses = self._forward(part)
            (losses.total * (self.precision.scale / max(count, 1))).backward()
            parts.append(replace(losses, loss=losses.loss.detach(), total=losses.loss.detach()))  # frees the graph
        self.world.sum_gradients(self.model.parameters())
        if self.precision.scale != 1.0:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad /= self.precision.scale
        names = list(parts[0].extra)
        rows = [torch.stack([each.loss, *(each.extra[name][0] for name in names)]) for each in parts]
        loss, *others = self.world.sum(torch.stack(rows).sum(0)).unbind()
        taken = add([each.counts for each in parts])
        counts = tuple(layer if layer is None else self.world.sum(layer) for layer in taken)
        return loss, count, dict(zip(names, others, strict=True)), counts

    def _forward(self, part: Batch) -> Losses:
        """The losses of a micro-batch, as sums."""
        try:
            with self.compiling.swapped(), self.precision.autocast(self.world.device):
                return self.objective(self.model, part)
        except Exception as error:
            if not self.compiling.failed(error):
                raise
            return self._forward(part)
