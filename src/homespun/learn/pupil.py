"""The model of a run between two of its checkpoints: it is measured, trained for a cycle, saved, or brought back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from homespun.data.batches import IGNORED, Batch
from homespun.data.tokenizer import Tokenizer
from homespun.errors import CheckpointError, ConfigError
from homespun.learn.replay import CORPUS, CycleText
from homespun.model.cost import cost
from homespun.model.decoder import Decoder
from homespun.objectives.metrics import perplexity
from homespun.optim import WarmupStableDecay, load_optimizer_tensors, optimizer_tensors
from homespun.train.checkpoint import Checkpoints
from homespun.train.compiling import Compiling
from homespun.train.figures import figures
from homespun.train.log import MetricsLog
from homespun.train.machine import available_memory
from homespun.train.memory import rows_that_fit
from homespun.train.parallel import World
from homespun.train.precision import choose
from homespun.train.progress import Progress, finite
from homespun.train.recipe import Recipe
from homespun.train.update import Stepped, Updater
from homespun.train.validate import Validation

SCHEDULE = WarmupStableDecay(warmup=0.1, decay=0.5)
"""Of each cycle: a model that has come to rest is warmed again, and comes to rest before it is judged."""


class Stopped(Exception):
    """A cycle was told to stop before its end."""


class Pupil:
    """A run's model, optimizer and place; the only writer of its folder."""

    def __init__(self, folder: Path, recipe: Recipe, tokenizer: Tokenizer, model: Decoder, say: Callable[[str], None]):
        if recipe.tuned is not None and recipe.tuned.adapter is not None:
            raise ConfigError(f"{folder} was tuned with an adapter", "Let the run below it learn, or tune all weights.")
        self.folder, self.recipe, self.tokenizer, self.model, self._say = folder, recipe, tokenizer, model, say
        self.world = World(0, 1, model.head_weight.device)
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.checkpoints.clean()
        self.metrics = MetricsLog(folder / "metrics.jsonl")
        self.restore()
        self.metrics.rewind(self.progress.step)
        context = recipe.model.context
        batch_rows = max(1, round(recipe.train.batch_tokens / context))
        fitting = rows_that_fit(cost(recipe.model), context, batch_rows, available_memory(self.world.device))
        self.rows = min(recipe.train.micro_batch or fitting, fitting)
        self.batch_rows = batch_rows
        former = self.state.get("precision")
        self.precision = choose(recipe.train.precision, model, self.rows * context, self.world, former)

    def renew(self) -> bool:
        """Takes the folder for this process again; whether there is another newest checkpoint since, which is read."""
        self.checkpoints.clean()
        if self.checkpoints.steps()[-1:] == [self.progress.step]:
            return False
        self.restore()
        self.metrics.rewind(self.progress.step)
        return True

    def restore(self) -> None:
        """Brings weights and optimizer to the newest good checkpoint."""
        place = self.checkpoints.newest_good(self._say)
        if place is None:
            raise CheckpointError(f"{self.folder} holds no checkpoint yet", "Train the run for at least one step.")
        files, self.state = self.checkpoints.read(place)
        self.model.load_state_dict(files["model"])
        self.optimizer: dict[str, Tensor] = files.get("optimizer", {})
        self.progress = Progress(**self.state["progress"])

    @property
    def told(self) -> dict[str, Any] | None:
        """What the newest checkpoint says of the cycle that made it."""
        found = self.state.get("learner")
        return found if isinstance(found, dict) else None

    # -- measuring ----------------------------------------------------------------------------------------------------

    def measure(self, text: CycleText) -> dict[str, dict[str, float]]:
        """Loss (nats per token) and bits per byte of the held-out text of each domain."""
        found = Validation(self.recipe, text, self.world, self.rows)(self.model, self.precision)
        return dict(found.get("sources", {}))

    @torch.no_grad()
    def losses(self, texts: Sequence[Sequence[int]]) -> list[float]:
        """The mean loss of each text's first context, in nats per token."""
        objective, found = self.recipe.objective.build(), []
        self.model.eval()
        for first in range(0, len(texts), self.rows):
            part = [
                [self.tokenizer.end, *ids][: self.recipe.model.context + 1] for ids in texts[first : first + self.rows]
            ]
            longest = max(map(len, part))
            rows = torch.tensor([[*ids, *[IGNORED] * (longest - len(ids))] for ids in part])
            batch = Batch(rows[:, :-1].clamp(min=0), rows[:, 1:]).to(self.world.device)
            with self.precision.autocast(self.world.device):
                each = objective.token_losses(self.model, batch)
            found += (each.sum(1) / (batch.targets >= 0).sum(1).clamp(min=1)).tolist()
        self.model.train()
        return found

    # -- training -----------------------------------------------------------------------------------------------------

    def train(self, text: CycleText, number: int, rate: float, passes: int, stop: Callable[[], bool]) -> dict[str, Any]:
        """Trains for a cycle; returns the figures of a row of metrics. The same call does the same, bit for bit.

        Raises `Stopped` when `stop` says so, and `TrainingError` where losses are not finite.
        """
        begin, context = time.monotonic(), self.recipe.model.context
        optimizer = self.recipe.optimizer.model_copy(update={"schedule": SCHEDULE, "learning_rate": rate})
        seed = (self.recipe.train.seed + number * 0x9E3779B1) % 2**32
        settings = self.recipe.train.model_copy(update={"seed": seed})
        recipe = self.recipe.model_copy(update={"optimizer": optimizer, "train": settings})
        rows = max(4, min(self.batch_rows, text.train.count // context // 4))
        batches = recipe.objective.batches(text, context, rows - rows % 2, seed, 0, 1)
        total = max(1, math.ceil(passes * batches.steps_per_epoch))
        compiling = Compiling("off", self.model, self._say)
        updater = Updater(recipe, self.model, self.world, self.precision, compiling, self.rows)
        load_optimizer_tensors(updater.optimizer, self.model, self.optimizer)
        self._before = {name: value.detach().clone() for name, value in self._weights()}
        self.model.train()
        done: list[Stepped] = []
        for step in range(total):
            if stop():
                raise Stopped
            done.append(updater.step(batches[step], step, total))
        self.optimizer = optimizer_tensors(updater.optimizer, self.model)
        tokens, seconds = total * batches.tokens_per_step, time.monotonic() - begin
        self.progress.step += total
        self.progress.tokens += tokens
        self.progress.seconds += seconds
        return {
            **figures([each for each in done if each.updated]),
            "learning_rate": rate,
            "gradient_norm": finite(float(done[-1].gradient_norm)),
            "tokens_per_second": tokens / seconds,
            "skipped_steps": updater.finite.total,
        }

    @torch.no_grad()
    def halve(self) -> None:
        """Takes half of what the last cycle did to the weights back (Wortsman et al., 2022): along this way the loss on
        old text, which was near its lowest, falls faster than what was gained on the new."""
        for name, value in self._weights():
            value.lerp_(self._before[name], 0.5)

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        named = chain(self.model.named_parameters(), self.model.named_buffers())
        return ((name, value) for name, value in named if value.is_floating_point())

    def save(self, told: Mapping[str, Any]) -> None:
        """Saves the state as a checkpoint that says which cycle made it; from here on the cycle counts."""
        p = self.progress
        p.logged = p.evaluated = p.saved = p.sampled = p.step
        p.saved_at = p.seconds
        files = {"model": self.model.state_dict(), "optimizer": self.optimizer}
        self.state |= {"progress": asdict(p), "precision": self.precision.to_dict(), "learner": dict(told)}
        self.checkpoints.save(p.step, files, self.state)

    def log(self, told: Mapping[str, Any]) -> None:
        """Writes the rows of metrics of a cycle that was kept, unless they are there."""
        p, after = self.progress, told["figures"]["after"]
        place = {"step": p.step, "tokens": p.tokens, "seconds": round(p.seconds, 3), "cycle": told["cycle"]}
        self.metrics.append(place | told["figures"]["training"])
        if CORPUS in after:
            loss, bits = after[CORPUS]["loss"], after[CORPUS]["bits_per_byte"]
            found = {"validation_loss": loss, "validation_bits_per_byte": bits}
            found["validation_perplexity"] = perplexity(loss, 1)
            self.metrics.append(place | found | {"sources": after})
