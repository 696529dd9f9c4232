"""The training loop: batch(seed, step) -> update -> metrics, checkpoints, samples."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from homespun.data.material import Material
from homespun.errors import CheckpointError
from homespun.model.cost import cost
from homespun.model.decoder import Decoder
from homespun.optim import load_optimizer_tensors, optimizer_tensors
from homespun.train import advice
from homespun.train.budget import Budget
from homespun.train.checkpoint import LESSONS, Checkpoints
from homespun.train.compiling import Compiling
from homespun.train.figures import figures
from homespun.train.guard import SignalGuard
from homespun.train.log import Console, MetricsLog, PlainConsole, read_metrics
from homespun.train.machine import available_memory
from homespun.train.memory import rows_that_fit
from homespun.train.pace import Pace
from homespun.train.parallel import World
from homespun.train.precision import ceiling, choose
from homespun.train.progress import History, Progress, Summary, finite
from homespun.train.recipe import Recipe
from homespun.train.rehearsal import Rehearsal
from homespun.train.update import Stepped, Updater
from homespun.train.validate import Validation

UNSAVED = 600.0  # seconds after which a checkpoint is due in any case
Sampler = Callable[[Decoder], list[tuple[str, str]]]
"""Writes a few texts with the model as it is: pairs of prompt and continuation."""


class Trainer:
    """Trains `model` on `corpus` as `recipe` says, in the run folder `folder`, going on from its newest checkpoint.

    Same machine, same settings: a run that was stopped and resumed ends with the same bits as one that was not.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: Decoder,
        corpus: Material,
        folder: Path,
        world: World | None = None,
        console: Console | None = None,
        sampler: Sampler | None = None,
    ):
        self.recipe, self.corpus, self.sampler = recipe, corpus, sampler
        self.world = world or World(0, 1, torch.device("cpu"))
        self.console: Console = console or PlainConsole(quiet=True)
        train, context = recipe.train, recipe.model.context
        self.model = model.to(self.world.device).train()
        self.model.checkpoint_activations = train.checkpoint_activations
        self.cost = cost(recipe.model, checkpointed=train.checkpoint_activations)
        rows = max(1, round(train.batch_tokens / context))
        self.batches = recipe.objective.batches(corpus, context, rows, train.seed, self.world.rank, self.world.size)
        rows, self.tokens_per_step = self.batches.batch_rows, self.batches.tokens_per_step
        self.budget = Budget.of(train, self.batches.steps_per_epoch, self.tokens_per_step)
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.metrics, self.samples = MetricsLog(folder / "metrics.jsonl"), MetricsLog(folder / "samples.jsonl")
        found = self._newest()
        micro_rows = self._micro_rows(-(-rows // self.world.size), found and found[1].get("micro_rows"))
        former = found and found[1]["precision"]
        precision = choose(train.precision, self.model, micro_rows * context, self.world, former)
        alone = self.world.size == 1 and self.world.device.type == "cpu"
        rehearsal = Rehearsal(recipe, micro_rows, precision.name) if alone else None
        compiling = Compiling(train.compile, self.model, self._note, rehearsal)
        self.updater = Updater(recipe, self.model, self.world, precision, compiling, micro_rows)
        self.validation = Validation(recipe, corpus, self.world, micro_rows)
        self.progress = Progress()
        self._taught = {name: value for name, value in (found[1] if found else {}).items() if name == LESSONS}
        if found is not None:
            self._restore(*found)
        self.history = self._history()
        self.pace = Pace()
        self._recent: list[Stepped] = []  # the updates since the last row of metrics
        self._last: Stepped | None = None

    # -- the run ------------------------------------------------------------------------------------------------------

    def fit(self) -> Summary:
        """Trains until the budget is spent, patience ends, or a signal asks to stop; each time the state is saved."""
        with SignalGuard() as signals, contextlib.closing(self.console), contextlib.closing(self.updater.compiling):
            self._announce()
            self.pace.start()
            reason = self._loop(signals)
            if reason != "signal":
                self.evaluate()
                self._sample()
            self._save()
        p = self.progress
        return Summary(p.step, p.tokens, p.seconds, self.history.latest, self.history.best_step, reason, signals.signal)

    def _loop(self, signals: SignalGuard) -> str:
        p, train = self.progress, self.recipe.train
        while True:
            over = self.budget.spent(p.step, p.seconds)
            flags = self.world.largest(torch.tensor([signals.signal or 0, over], device=self.world.device)).tolist()
            if flags[0]:  # every process stops at the same step
                signals.signal = int(flags[0])
                return "signal"
            if self.budget.total is not None and not p.advised:
                self._advise_on_sizes(self.budget.total * self.tokens_per_step)
            if self._last is not None and (flags[1] or self._due(p.logged, self._share_of_run(400))):
                self._log(self._last)
            if self._due(p.evaluated, train.evaluate_every or self.often):
                self.evaluate()
            if self._due(p.sampled, train.sample_every or self.often):
                self._sample()
            if self._due(p.saved, train.save_every or self.often) or p.seconds - p.saved_at > UNSAVED:
                self._save()
            if train.patience is not None and self.history.worse >= train.patience:
                self._note(f"stopping: {self.history.worse} evaluations without a new best (train.patience)")
                return "patience"
            if flags[1]:
                return "budget"
            self.step()

    def step(self) -> Stepped:
        """The next step of the run, and the plan of the rest."""
        p = self.progress
        done = self.updater.step(self.batches[p.step], p.step, self.budget.horizon(p.step))
        if done.updated:
            self._recent.append(done)
        p.step += 1
        p.tokens += self.tokens_per_step
        self._last = done
        clock = torch.tensor([p.seconds + self.pace.lap(), self.pace.per_step or math.nan], dtype=torch.float64)
        p.seconds, pace = self.world.from_leader(clock.to(self.world.device)).tolist()  # one clock for all
        if not math.isnan(pace):
            self.budget.plan(p.step, p.seconds, pace)
            left = self.budget.seconds_left(p.step, p.seconds, pace)
            if self.updater.compiling.consider(left, self.world.device):
                self.pace.start()  # the steps so far tell nothing about the next ones
        return done

    def _due(self, last: int, every: int) -> bool:
        return self.progress.step - last >= every

    def _share_of_run(self, parts: int) -> int:
        return -(-self.budget.total // parts) if self.budget.total is not None else 10**9

    @property
    def often(self) -> int:
        """Steps between evaluations, where the recipe does not say: ten in a run, but never a tenth of its time.

        Reading a token costs a third of training on it.
        """
        read = min(self.recipe.train.evaluate_tokens, self.corpus.valid.count)
        return max(self._share_of_run(10), -(-read * 10 // (3 * self.tokens_per_step)))

    # -- what is seen -------------------------------------------------------------------------------------------------

    def _log(self, last: Stepped) -> None:
        p = self.progress
        row = {
            "step": p.step,
            "tokens": p.tokens,
            "seconds": round(p.seconds, 3),
            **figures(self._recent),
            "learning_rate": last.learning_rate,
            "gradient_norm": finite(float(last.gradient_norm)),
            "tokens_per_second": finite(self.pace.speed(p.tokens)),
            "skipped_steps": self.updater.finite.total,
        }
        self._recent.clear()
        p.logged = p.step
        if self.world.leader:
            self.metrics.append(row)
            pace = self.pace.per_step
            left = self.budget.seconds_left(p.step, p.seconds, pace) if pace else None
            work = self.cost.training_flops * self.tokens_per_step / self.world.size / self.ceiling  # seconds, at best
            told = {"total": self.budget.total, "seconds_left": left, "share": work / pace if pace else None}
            self.console.update(p.step, row | told)
        if (said := self.recipe.objective.alarm(row)) and not p.alarmed:
            p.alarmed = True
            self.advise(said)

    def evaluate(self) -> None:
        """Saves first (an evaluation that runs out of memory must not cost the training), measures, keeps the best."""
        p = self.progress
        if p.evaluated == p.step and p.step > 0:
            return
        self._save()
        p.evaluated = p.step
        found = self.validation(self.model, self.updater.precision)
        if not found:
            return
        row: dict[str, Any] = {"step": p.step, "tokens": p.tokens, "seconds": round(p.seconds, 3)}
        row |= {name: finite(value) if isinstance(value, float) else value for name, value in found.items()}
        better = self.history.add(row)
        if self.world.leader:
            self.metrics.append(row)
            if better:
                self.checkpoints.mark_best(p.step)
            self.console.validation(row | {"best": better})
            if said := advice.rising(self.history.losses):
                self.advise(said)

    def _sample(self) -> None:
        p = self.progress
        if self.sampler is None or p.sampled == p.step:
            return
        p.sampled = p.step
        if self.world.leader:
            try:
                written = self.sampler(self.model)
            except CheckpointError as error:  # whether a model without finite output goes on, the guard decides
                self._note(f"no sample: {error.problem}")
                written = []
            for prompt, text in written:
                self.samples.append({"step": p.step, "prompt": prompt, "text": text})
                self.console.sample(prompt + text)
            self.model.train()

    def advise(self, sentence: str) -> None:
        """Prints a piece of advice and keeps it with the metrics."""
        if self.world.leader:
            self.metrics.append({"step": self.progress.step, "advice": sentence})
            self.console.note(sentence)

    def _note(self, sentence: str) -> None:
        if self.world.leader:
            self.console.note(sentence)

    def _announce(self) -> None:
        """Says aloud what was chosen, before the first step."""
        model, precision, rows = self.recipe.model, self.updater.precision, self.updater.micro_rows
        self.ceiling = ceiling(self.model, rows * model.context, precision.dtype, self.world.device)
        if not self.world.leader:
            return
        self.console.start(self.budget.total, f"{self.recipe.name}, {self.cost.parameters:,} parameters")
        self._note(f"computing in {precision.name}: {precision.reason}")
        self._note(f"{self.tokens_per_step:,} tokens in a step, {rows} rows of {model.context} at a time")
        if self.progress.step:
            self._note(f"going on from step {self.progress.step}")

    def _advise_on_sizes(self, planned: int) -> None:
        """Once in a run, as soon as it is known how many tokens it will read."""
        self.progress.advised = True
        vocab, text = self.recipe.model.vocab or 0, self.corpus.train.count
        for said in advice.on_sizes(self.cost.parameters, self.cost.embedding, vocab, text, planned):
            self.advise(said)

    # -- what is kept -------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        p = self.progress
        if p.saved == p.step and p.step > 0:
            return
        p.saved, p.saved_at = p.step, p.seconds
        if self.world.leader:
            files = self.weights() | {"optimizer": optimizer_tensors(self.updater.optimizer, self.model)}
            state = self._taught | {
                "progress": asdict(p),
                "budget": asdict(self.budget),
                "micro_rows": self.updater.micro_rows,
                "guard": self.updater.finite.to_dict(),
                "precision": self.updater.precision.to_dict(),
                "optimizer": self.recipe.optimizer.kind,
            }
            self.checkpoints.save(p.step, files, state)
            self.checkpoints.prune(self.recipe.train.keep)
        self.world.wait()

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds of the model, by file: in `model`, a whole model for writing."""
        return {"model": self.model.state_dict()}

    def load_weights(self, files: dict[str, dict[str, Tensor]]) -> None:
        """Takes what `weights` gave. Raises `RuntimeError` where it does not fit."""
        self.model.load_state_dict(files["model"])

    def _newest(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        if self.world.leader:
            self.checkpoints.clean()
        self.world.wait()
        place = self.checkpoints.newest_good(self._note)
        return self.checkpoints.read(place) if place is not None else None

    def _restore(self, files: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        try:
            self.load_weights(files)
            load_optimizer_tensors(self.updater.optimizer, self.model, files["optimizer"])
            self.progress = Progress(**state["progress"])
            self.updater.finite.from_dict(state["guard"])
            planned = Budget(**state["budget"])
        except (RuntimeError, KeyError, TypeError) as error:
            why = str(error).splitlines()[0]
            raise CheckpointError(f"The checkpoint does not fit this recipe: {why}", "Choose another --out.") from None
        if (planned.fixed, planned.seconds) == (self.budget.fixed, self.budget.seconds):
            self.budget = planned  # another budget than before is planned anew

    def _history(self) -> History:
        """The evaluations so far, from the metrics; what was logged after the checkpoint will be logged again."""
        if self.world.leader:
            reached = self.progress.step or -1  # without a checkpoint nothing of an earlier start counts
            self.metrics.rewind(reached)
            self.samples.rewind(reached)
        self.world.wait()
        history = History()
        for row in read_metrics(self.metrics.path):
            if "validation_loss" in row:
                history.add(row)
        self.progress.evaluated = max(self.progress.evaluated, history.step)
        sampled = [row["step"] for row in read_metrics(self.samples.path)]
        self.progress.sampled = max([self.progress.sampled, *sampled])
        if self.world.leader and history.best_step in self.checkpoints.steps():
            self.checkpoints.mark_best(history.best_step)
        return history

    def _micro_rows(self, rows: int, former: int | None) -> int:
        """As asked, else what fits all; a run that goes on keeps its own if they fit: other parts round otherwise."""
        if (asked := self.recipe.train.micro_batch) is not None:
            return min(asked, rows)
        fitting = rows_that_fit(self.cost, self.recipe.model.context, rows, available_memory(self.world.device))
        return self.world.least(min(former or fitting, fitting))
