"""Beam search: the most likely text, instead of one that is drawn. B beams, V vocabulary.

Many beams are written at once, as rows of one cache. At each step every beam is continued by its best tokens, and the B
best of all these continuations stay; those that have ended leave.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from homespun.errors import CheckpointError, ConfigError
from homespun.generate.reader import Reader
from homespun.generate.row import Constraint, Row
from homespun.generate.sampling import Sampling, penalize
from homespun.generate.stops import StopGate

if TYPE_CHECKING:
    from homespun.generate.engine import Generator


@dataclass(frozen=True)
class Beam:
    """A finished text: the ids that were written, the model's own log-probability of each, and why it ended.

    `score`: the sum of the log-probabilities, divided by their number to the power of `Sampling.length_penalty`.
    """

    ids: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    score: float
    finish: Literal["stop", "length"]


def beam_search(generator: Generator, ids: list[int], sampling: Sampling, count: int = 1) -> list[Beam]:
    """Up to `count` different continuations of a prompt, the best score first, found along `sampling.beams` beams.

    Temperature, top-k and the other settings of a draw mean nothing here. Penalties, the bias and a constraint decide
    which beams go on, as they do in greedy writing; scores are of the model's own probabilities, and so comparable.
    The greedy text is always one of the beams: with one beam it is the result, and the best score is never below its
    own. The end token and the tokens of a stop string count in a text's length. The search ends when no beam can become
    better than the `count` best that have ended. Raises `ConfigError` if `count` is more than there are beams.
    """
    if count > sampling.beams:
        raise ConfigError(f"{sampling.beams} beams cannot give {count} texts", f"Set beams = {count} or more.")
    search = _Search(generator, generator.row(ids, sampling), count)
    while search.going_on:
        search.step()
    return search.best()


@dataclass
class _Live:
    """A beam that has not ended. `key`: its log-probability with what the controls added to the logits."""

    ids: list[int]
    log_probabilities: list[float]
    total: float
    key: float
    greedy: bool
    constraint: Constraint | None


@dataclass(frozen=True)
class _Candidate:
    """A beam and its next token. `greedy`: it goes on with the greedy text."""

    parent: int
    token: int
    log_probability: float
    key: float
    greedy: bool


class _Search:
    def __init__(self, generator: Generator, row: Row, count: int):
        self._generator, self._sampling, self._count = generator, row.sampling, count
        self._reader = Reader(generator.writer, generator.bias.device)
        self._prompt = row.ids
        self._live = [_Live(list(row.ids), [], 0.0, 0.0, True, row.constraint)]
        self._seen, self._counts = (
            None if each is None else each[None].to(generator.bias.device) for each in (row.seen, row.counts)
        )
        self._ended: dict[str, Beam] = {}

    @property
    def going_on(self) -> bool:
        """Whether a beam may still become one of the best."""
        if len(self._ended) < self._count:
            return bool(self._live)
        least = self.best()[-1].score
        return any(self._most(live) > least for live in self._live)

    def best(self) -> list[Beam]:
        """The best of those that have ended."""
        return sorted(self._ended.values(), key=lambda beam: -beam.score)[: self._count]

    def step(self) -> None:
        """One more token of every beam."""
        logits = self._reader.read([live.ids for live in self._live])[:, 0]
        with torch.inference_mode():
            chosen = self._choose(self._candidates(logits))
        going = [(candidate.parent, live) for candidate in chosen if (live := self._continue(candidate))]
        self._live = [live for _, live in going]
        parents = [parent for parent, _ in going]
        if not going:
            return
        self._reader.branch(parents)
        if self._seen is not None and self._counts is not None:
            rows, tokens = range(len(going)), [live.ids[-1] for live in self._live]
            self._seen, self._counts = self._seen[parents], self._counts[parents]
            self._seen[rows, tokens] = True
            self._counts[rows, tokens] += 1

    def _candidates(self, logits: Tensor) -> list[_Candidate]:
        """The best tokens after each beam, from logits (B, V). The first of each beam is the greedy one."""
        shaped = logits + self._generator.bias
        if self._live[0].constraint is not None:
            allowed = torch.stack([live.constraint.allowed() for live in self._live if live.constraint is not None])
            shaped = shaped.masked_fill(~allowed.to(shaped.device), -math.inf)
        shaped = penalize(shaped, self._sampling, self._seen, self._counts)
        log_probabilities = logits.log_softmax(-1)
        total = logits.logsumexp(-1, keepdim=True)
        few = min(self._sampling.beams, logits.size(-1))
        ids = torch.cat((shaped.argmax(-1, keepdim=True), shaped.topk(few).indices), dim=-1)
        told = torch.stack((ids.float(), log_probabilities.gather(1, ids), shaped.gather(1, ids) - total), dim=-1)
        found = []
        for parent, (live, row) in enumerate(zip(self._live, told.tolist(), strict=True)):
            greedy = row[0][0]
            for token, log_probability, key in [row[0], *(each for each in row[1:] if each[0] != greedy)]:
                if math.isnan(log_probability):
                    raise CheckpointError(
                        "The model's output is not a number", "Use an earlier checkpoint of this run."
                    )
                goes_on = live.greedy and token == greedy
                found.append(_Candidate(parent, int(token), log_probability, live.key + key, goes_on))
        return found

    def _choose(self, candidates: list[_Candidate]) -> list[_Candidate]:
        """The best, and always the greedy one while there is one."""
        possible = [each for each in candidates if each.key > -math.inf]
        best = sorted(possible, key=lambda each: -each.key)[: self._sampling.beams]
        greedy = [each for each in candidates if each.greedy and each not in best]
        return best[: self._sampling.beams - len(greedy)] + greedy

    def _continue(self, candidate: _Candidate) -> _Live | None:
        """The beam with one token more; none if it has ended with it."""
        if math.isnan(candidate.log_probability):
            raise CheckpointError("The model's output is not a number", "Use an earlier checkpoint of this run.")
        live, token = self._live[candidate.parent], candidate.token
        ids, log_probabilities = [*live.ids, token], [*live.log_probabilities, candidate.log_probability]
        total = live.total + candidate.log_probability
        ended, bound = token in self._generator.ends, copy.copy(live.constraint)
        if bound is not None and not ended:
            bound.accept(token)
            ended = bound.done
        if self._sampling.stop and not ended:
            ended = self._text(ids)[1]
        if not ended and len(log_probabilities) < self._sampling.max_tokens:
            return _Live(ids, log_probabilities, total, candidate.key, candidate.greedy, bound)
        score = self._score(total, len(log_probabilities))
        if bound is not None and bound.failed is not None:
            ended = False  # no match
        written = tuple(ids[len(self._prompt) :])
        self._end(Beam(written, tuple(log_probabilities), score, "stop" if ended else "length"), self._text(ids)[0])
        return None

    def _end(self, beam: Beam, text: str) -> None:
        if text not in self._ended or beam.score > self._ended[text].score:
            self._ended[text] = beam

    def _score(self, total: float, length: int) -> float:
        return total / float(length) ** self._sampling.length_penalty

    def _most(self, live: _Live) -> float:
        """The highest score that a beam may reach: that of a text which goes on for nothing, and ends where it is best
        to end: as late as it may if length is rewarded, and at once if not."""
        longest, next_one = self._sampling.max_tokens, len(live.log_probabilities) + 1
        return self._score(live.total, longest if self._sampling.length_penalty > 0 else next_one)

    def _text(self, ids: list[int]) -> tuple[str, bool]:
        """The text that was written, and whether a stop string ends it."""
        stream, gate = self._generator.tokenizer.decoder(), StopGate(self._sampling.stop)
        stream.extend(self._prompt)
        text, stopped = gate.push(stream.extend(ids[len(self._prompt) :]))
        return (text if stopped else text + gate.flush()), stopped
