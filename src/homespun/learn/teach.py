"""Teaching by hand: a text, or a question with its answer, is learnt at once, beside what was learnt before.

Every update has three parts: the lesson, earlier lessons, and text of the run's own corpus, so that what the model
could do it can still do. What it cost is measured on held-out text.

B rows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from homespun.config import Config, Count
from homespun.data.batches import IGNORED, Batch
from homespun.data.grow import grow
from homespun.data.material import Material
from homespun.data.tokenizer import Tokenizer
from homespun.errors import ConfigError, TrainingError
from homespun.learn.conversations import Rows
from homespun.learn.lessons import Lesson, beside, checked, is_text, latest, pair_lesson, replaced, rows_of, text_lesson
from homespun.model.decoder import Decoder
from homespun.objectives import NextToken
from homespun.objectives.metrics import bits_per_byte
from homespun.optim import AdamW, clip_gradients

ROWS = 32
"""Rows of a lesson in one update, and of earlier ones."""

LOGITS = 2**25
"""Numbers of logits that are in memory at one time."""


class Teaching(Config):
    """How lessons are taught.

    `learning_rate`: of AdamW, fresh for each lesson; none: 0.05 / width. Answers are learnt until each of their tokens
    has at least the probability `sure`, in at most `steps` updates, of which the rate rises in the first `warmup`; then
    it falls to 0, in `settle` more or half as many as it took; a text is read `passes` times, while the rate falls.
    `replay_rows`: rows of the model's context, of the run's own text, in each update; `replay`: the weight of their
    loss beside the lesson's 1; `hold`: of the distance from what the model said of them before the lesson.
    `held_out_tokens`: what is read to measure the drift. `seed`: of which rows are replayed.
    """

    learning_rate: Annotated[float, Field(gt=0)] | None = None
    steps: Count = 200
    sure: Annotated[float, Field(gt=0.5, lt=1)] = 0.8
    passes: Count = 20
    settle: Count = 30
    warmup: Count = 10
    replay_rows: Annotated[int, Field(ge=0)] = 4
    replay: Annotated[float, Field(ge=0)] = 1.0
    hold: Annotated[float, Field(ge=0)] = 10.0
    held_out_tokens: Count = 32768
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


@dataclass(frozen=True)
class Taught:
    """What a lesson changed: its loss in nats per token before and after; how many of its `lessons` are known for
    certain, in that each of their tokens is the likeliest; and bits per byte of held-out text, where there is any."""

    lessons: int
    known: int
    steps: int
    loss_before: float
    loss_after: float
    held_out_before: float | None = None
    held_out_after: float | None = None
    words: int = 0
    """Tokens that the vocabulary grew by."""
    replaced: int = 0
    """Other answers to the same questions, given before these, that are repeated no longer."""

    @property
    def drift(self) -> float | None:
        """By which share the held-out bits per byte rose: 0.01 is one percent."""
        if self.held_out_before is None or self.held_out_after is None:
            return None
        return self.held_out_after / self.held_out_before - 1


@dataclass(frozen=True)
class _Snapshot:
    weights: dict[str, Tensor]
    tokenizer: Tokenizer
    lessons: tuple[Lesson, ...]
    held_out: float | None


class Teacher:
    """Teaches `model`, in place. `material`: what it was trained on, to be replayed and measured; none: only lessons
    are. `lessons`: those it was taught earlier, which are replayed too. `grows`: `learn` first makes tokens of what
    occurs repeatedly in a text, up to the vocabulary that the model has room for. `say`: hears of each update how many
    there may be, which one it was, and the loss of its part of the lesson, in nats per token."""

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        material: Material | None = None,
        settings: Teaching | None = None,
        lessons: Sequence[Lesson] = (),
        grows: bool = False,
        say: Callable[[int, int, float], None] = lambda total, step, loss: None,
    ):
        self.model, self.tokenizer, self.material = model, tokenizer, material
        self.settings, self.lessons, self.grows = settings or Teaching(), tuple(lessons), grows
        self.say, self.steps = say, 0
        self._objective = NextToken().build()
        self._held_out: float | None = None
        self._former: _Snapshot | None = None

    def learn(self, text: str) -> Taught:
        """Reads a text until it is familiar."""
        return self.teach([text_lesson(text)])

    def learn_qa(self, question: str, answer: str) -> Taught:
        """Learns the answer to a question."""
        return self.teach([pair_lesson(question, answer)])

    def train_on_sequence(self, text: str) -> Taught:
        """One update on every next token of a text, from its start to its end."""
        return self.teach([text_lesson(text)], steps=1)

    def teach(self, lessons: Iterable[Lesson], steps: int | None = None) -> Taught:
        """Learns lessons together; with `steps`, in so many updates, and without keeping them for replay.

        Of two answers to one question the later one is learnt, and the earlier one is repeated no longer. Raises
        `DataError` for a lesson that cannot be learnt, and `TrainingError` where numbers are no longer finite. Whatever
        ends it early, Ctrl-C too, the model is as it was.
        """
        context = self.model.config.context
        given = checked(lessons)
        rows_of(given, self.tokenizer, context)  # before anything changes
        lessons = latest(given)
        earlier = beside(lessons, self.lessons)
        gone = replaced([*self.lessons, *given], [*earlier, *lessons])
        held_out, training = self._measure(), self.model.training
        self._snapshot(held_out)
        try:
            words = self._grow(lessons) if self.grows and steps is None else 0
            rows, former = (rows_of(each, self.tokenizer, context) for each in (lessons, earlier))
            self.model.eval()  # without dropout: a lesson is seen a few times only
            before, _ = self._loss(rows)
            done = self._updates(rows, former, steps, all(map(is_text, lessons)))
            after, sure = self._loss(rows)
            if not math.isfinite(after):
                raise TrainingError("The lesson made the weights useless", "Lower the learning rate.")
        except BaseException:
            self.undo()
            raise
        finally:
            self.model.train(training)
        if steps is None:
            self.lessons = (*earlier, *lessons)
        self._held_out = None
        if len(sure) != len(lessons):  # windows of texts: known where all are
            sure = [all(sure)] * len(lessons)
        return Taught(len(lessons), sum(sure), done, before, after, held_out, self._measure(), words, gone)

    def undo(self) -> None:
        """Makes the last lesson undone. Raises `ConfigError` where there was none, or it is undone already."""
        former, self._former = self._former, None
        if former is None:
            raise ConfigError("There is no lesson to undo", "Only the last one can be undone, once.")
        self.model.load_state_dict(former.weights)
        self.tokenizer, self.lessons, self._held_out = former.tokenizer, former.lessons, former.held_out

    def _snapshot(self, held_out: float | None) -> None:
        weights = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self._former = _Snapshot(weights, self.tokenizer, self.lessons, held_out)

    # -- the updates --------------------------------------------------------------------------------------------------

    def _updates(self, rows: Rows, former: Rows, steps: int | None, text: bool) -> int:
        """Learns `rows`; returns in how many updates."""
        settings = self.settings
        passes = -(-len(rows.lengths) // ROWS)
        most = steps or (settings.passes * passes if text else settings.steps * passes)
        rate = settings.learning_rate or 0.05 / self.model.config.width
        optimizer = AdamW(learning_rate=rate, weight_decay=0.0, betas=(0.9, 0.98)).build(self.model)
        random = np.random.default_rng([settings.seed, self.steps])
        keeps = self.material is not None and settings.replay_rows and (settings.replay or settings.hold)
        learnt_at: int | None = None
        for step in range(most):
            left = min(1.0, (most - step) / (most if text else settings.settle))
            if learnt_at is not None:
                left = min(left, 1 - (step - learnt_at) / max(settings.settle, learnt_at // 2))
                if left <= 0:
                    return step
            for group in optimizer.param_groups:
                group["lr"] = rate * min(left, (step + 1) / settings.warmup)
            loss = self._ask(_some(rows, random))
            if len(former.lengths):
                self._ask(_some(former, random))
            if keeps:
                self._keep()
            clip_gradients(self.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self.steps += 1
            self.say(most, step + 1, loss)
            if not (text or steps) and learnt_at is None and self._learnt(rows) and self._learnt(former):
                learnt_at = step + 1
        return most

    def _ask(self, batch: Batch) -> float:
        """Adds the gradient of the loss of what is asked; returns that loss."""
        losses = self._objective(self.model, batch.to(self.model.head_weight.device))
        (losses.total / max(1, losses.count)).backward()
        return float(losses.loss.detach()) / max(1, losses.count)

    def _keep(self) -> None:
        """Adds to the gradient the loss of rows of the run's own text, and how far the model has come from what it
        said of them before the lesson (learning without forgetting: Li and Hoiem, 2016), in nats per token."""
        settings = self.settings
        assert self.material is not None and self._former is not None
        batches = self.material.batches(self.model.config.context, settings.replay_rows, settings.seed + 1)
        rows = batches[self.steps].to(self.model.head_weight.device)  # others in each update
        part = max(1, LOGITS // (rows.tokens.size(1) * self.model.head_weight.size(0)))
        asked = max(1, int((rows.targets != IGNORED).sum()))
        for tokens, targets in zip(rows.tokens.split(part), rows.targets.split(part), strict=True):
            with torch.no_grad():
                before = torch.func.functional_call(self.model, self._former.weights, (tokens,))
                before = before.float().log_softmax(-1)
            now = self.model(tokens).float().log_softmax(-1)
            loss = F.nll_loss(now.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum") / asked
            distance = F.kl_div(now, before, reduction="sum", log_target=True) / rows.tokens.numel()
            (settings.replay * loss + settings.hold * distance).backward()

    def _learnt(self, rows: Rows) -> bool:
        return all(bool((losses <= -math.log(self.settings.sure)).all()) for _, losses in self._losses(rows))

    # -- what is measured ---------------------------------------------------------------------------------------------

    def _losses(self, rows: Rows) -> Iterator[tuple[Batch, Tensor]]:
        for first in range(0, len(rows.lengths), ROWS):
            batch = rows.batch(np.arange(first, min(first + ROWS, len(rows.lengths))))
            batch = batch.to(self.model.head_weight.device)
            yield batch, self._objective.token_losses(self.model, batch)

    def _loss(self, rows: Rows) -> tuple[float, list[bool]]:
        """The mean loss of what is asked, and of which rows each token is the likeliest for certain."""
        total, count, sure = 0.0, 0, []
        for batch, losses in self._losses(rows):
            total, count = total + float(losses.double().sum()), count + int((batch.targets != IGNORED).sum())
            sure += (losses.amax(1) < math.log(2)).tolist()
        return total / max(1, count), sure

    def _measure(self) -> float | None:
        """Bits per byte of held-out text, where there is any."""
        if self.material is None or self._held_out is not None:
            return self._held_out
        nats, text_bytes, sizes = 0.0, 0, torch.from_numpy(self.material.tokenizer.token_bytes())
        training = self.model.training
        self.model.eval()
        limit = self.settings.held_out_tokens
        for _, batch in self.material.validation(self.model.config.context, ROWS, limit):
            on_device = batch.to(self.model.head_weight.device)
            nats += float(self._objective.token_losses(self.model, on_device).double().sum())
            text_bytes += int(sizes[batch.targets[batch.targets != IGNORED]].sum())
        self.model.train(training)
        self._held_out = bits_per_byte(nats, text_bytes) if text_bytes else None
        return self._held_out

    # -- the vocabulary -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _grow(self, lessons: Sequence[Lesson]) -> int:
        """Makes tokens of what occurs repeatedly in texts; each starts as the mean of the two it is made of."""
        text = "\n".join(lesson["text"] for lesson in lessons if is_text(lesson))
        grown = grow(self.tokenizer, text, self.model.config.vocab or 0)
        head = self.model.embedding_head
        own = [] if head is None else [each for each in (head.words, head.word_score) if each is not None]
        tables = {id(table): table for table in (self.model.model.embed_tokens.weight, self.model.head_weight, *own)}
        for token, pair in grown.parts.items():
            for table in tables.values():  # one of the first two, where they are tied
                table[token] = (table[pair[0]] + table[pair[1]]) / 2
        self.tokenizer = grown.tokenizer
        return len(grown.parts)


def _some(rows: Rows, random: np.random.Generator) -> Batch:
    """All rows, or some of many."""
    count = len(rows.lengths)
    return rows.batch(np.arange(count) if count <= ROWS else np.sort(random.choice(count, ROWS, replace=False)))
