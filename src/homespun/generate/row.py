"""One text while it is written: its tokens, its settings, and what is certain of its words. V vocabulary."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from homespun.data.tokenizer import Tokenizer
from homespun.errors import CheckpointError
from homespun.generate.records import Alternative, Token
from homespun.generate.sampling import Sampling, draws, sample
from homespun.generate.stops import StopGate


class Constraint(Protocol):
    """What a text must match, token by token."""

    done: bool
    """Whether nothing may follow."""
    failed: str | None
    """Why the text cannot go on although it is no match yet; the end token alone is allowed then."""

    def allowed(self) -> Tensor:
        """True for the tokens that may come next, (V,)."""
        ...

    def accept(self, token: int) -> None:
        """Goes on with this token, which was allowed."""
        ...


class Row:
    """A text: the ids of its prompt and of what was written, which `take` adds to.

    `index`: which text of its call it is. `prompt`: how many of its `ids` are the prompt. `seed`: decides its draws.
    `alternatives`: how many of the most likely tokens are told beside each chosen one. `done`: nothing is written any
    more. `window`: which of its ids is the first that the model has read. `seen`, `counts`: for penalties, the tokens
    (V,) of the prompt and the text, and how often each was written. `ends`: the tokens that end it; none means the
    tokenizer's end.
    """

    def __init__(
        self,
        index: int,
        ids: Sequence[int],
        sampling: Sampling,
        tokenizer: Tokenizer,
        vocab: int,
        alternatives: int = 0,
        constraint: Constraint | None = None,
        ends: Set[int] = frozenset(),
    ):
        self.index, self.ids, self.prompt = index, list(ids), len(ids)
        self.sampling, self.alternatives, self.constraint = sampling, alternatives, constraint
        self.controls = sampling.controls
        self.seed = ((sampling.seed or 0) + index) % 2**63
        self.done, self.window = False, 0
        self.seen = self.counts = None
        self._tokenizer, self._ends = tokenizer, ends or {tokenizer.end}
        self._stream = tokenizer.decoder()
        self._stream.extend(self.ids)  # a word that goes on needs no space, and a character may have begun
        self._gate = StopGate(sampling.stop)
        if sampling.penalizes:
            self.seen = torch.zeros(vocab, dtype=torch.bool)
            self.seen[self.ids] = True
            self.seen[list(self._ends)] = False
            self.counts = torch.zeros(vocab)

    @property
    def written(self) -> int:
        """How many tokens were written."""
        return len(self.ids) - self.prompt

    @property
    def left(self) -> int:
        """How many tokens may still be written."""
        return 0 if self.done else self.sampling.max_tokens - self.written

    def take(self, token: int, log_probability: float, alternatives: Sequence[tuple[int, float]] = ()) -> Token:
        """Adds the next token and tells what became certain with it.

        `log_probability`: natural, under the model. `alternatives`: ids and log-probabilities, the most likely first.
        """
        if math.isnan(log_probability):
            raise CheckpointError("The model's output is not a number", "Use an earlier checkpoint of this run.")
        self.ids.append(token)
        ended, last = token in self._ends, self.left == 0
        cut = ended and self.constraint is not None and self.constraint.failed is not None
        if self.seen is not None and self.counts is not None and not ended:
            self.seen[token] = True
            self.counts[token] += 1
        if self.constraint is not None and not ended:
            self.constraint.accept(token)
            ended = self.constraint.done
        text, stopped = self._gate.push(self._stream.push(token))
        if (ended or last) and not stopped:
            text += self._gate.flush()
        finish: Literal["stop", "length"] | None = None
        if ended or stopped or last:
            finish = "stop" if (ended and not cut) or stopped else "length"
        self.done = finish is not None
        told = tuple(self._alternative(*pair) for pair in alternatives[: self.alternatives])
        return Token(self.index, token, text, log_probability, told, finish)

    def _alternative(self, token: int, log_probability: float) -> Alternative:
        return Alternative(token, self._tokenizer.decode([token], special=True), log_probability)


def choose(logits: Tensor, row: Row) -> int:
    """The next id, from logits (V,), by the row's settings, draw and constraint."""
    if row.constraint is not None:
        logits = logits.masked_fill(~row.constraint.allowed(), -math.inf)
    uniforms = None
    if row.sampling.temperature:
        uniforms = draws(np.array([row.seed], dtype=np.uint64), np.array([len(row.ids)], dtype=np.uint64))
    seen = row.seen[None] if row.seen is not None else None
    counts = row.counts[None] if row.counts is not None else None
    return int(sample(logits[None], row.sampling, uniforms, seen, counts))
