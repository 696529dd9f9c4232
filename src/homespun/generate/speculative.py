"""Speculative writing: a draft proposes tokens, the model judges all of them in one forward (Leviathan et al., 2023).

Each choice of the model is a pure function of the tokens before it, the seed and the place. So what is proposed is not
drawn anew: it is compared with the model's own choice, and the text is the very one that is written without a draft, up
to rounding. A draft decides how quickly a text is written, and nothing else. V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from homespun.errors import ConfigError
from homespun.generate.batch import evaluating, pick
from homespun.generate.reader import Reader
from homespun.generate.records import Token
from homespun.generate.row import Row

if TYPE_CHECKING:
    from homespun.generate.engine import Generator

FIRST, MOST = 4, 8  # proposals of the first step, and of any


class Draft(Protocol):
    """Guesses how a text goes on."""

    def propose(self, row: Row, count: int) -> list[int]:
        """Up to `count` ids that may follow `row.ids`; none is a fine answer. The row is not changed."""
        ...


@dataclass
class Report:
    """What speculation gained: tokens that were `proposed` and `accepted`, `steps` (forwards) of the model, and
    `tokens` written in them."""

    proposed: int = 0
    accepted: int = 0
    steps: int = 0
    tokens: int = 0

    @property
    def acceptance(self) -> float:
        """The share of the proposed tokens that the model chose too."""
        return self.accepted / max(1, self.proposed)

    @property
    def tokens_per_step(self) -> float:
        """Tokens for each forward of the model; 1 without a draft."""
        return self.tokens / max(1, self.steps)


def speculate(generator: Generator, row: Row, draft: Draft, report: Report | None = None) -> Iterator[Token]:
    """Writes one text, made by `generator.row`: the tokens of `generator.tokens`, in fewer forwards.

    Proposals become more while all of them are accepted, and fewer when none is. At the end of the context there is
    no room for any. `report` is kept up to date.
    """
    report = report if report is not None else Report()
    reader, count = Reader(generator.writer, generator.bias.device), FIRST
    while not row.done:
        most = min(count, reader.room(len(row.ids)), row.left - 1, reader.takes_back)
        proposed = draft.propose(row, most)[:most] if most > 0 else []
        tokens, accepted = _judge(generator, reader, row, proposed)
        report.proposed += len(proposed)
        report.accepted += accepted
        report.steps += 1
        report.tokens += len(tokens)
        if proposed:
            count = min(count + 1, MOST) if accepted == len(proposed) else max(count // 2, 1) if not accepted else count
        yield from tokens


def _judge(generator: Generator, reader: Reader, row: Row, proposed: Sequence[int]) -> tuple[list[Token], int]:
    """The tokens that follow, up to the first that was not proposed; and how many were."""
    choice = generator.choice
    with torch.inference_mode(), evaluating(generator.writer):
        logits = reader.read([[*row.ids, *proposed]], len(proposed) + 1)  # (1, proposed + 1, V)
        tokens: list[Token] = []
        for place, guess in enumerate((*proposed, None)):
            tokens += [token for _, token in choice.next(logits[:, place], [row])]
            if tokens[-1].id != guess:
                return tokens, place
            if row.done:
                break
    return tokens, len(tokens)


class PromptLookup:
    """Proposes what followed the newest tokens where they stood before: for texts that repeat parts of themselves.

    `longest`: how many of the newest tokens are looked up; where they are not found, fewer are.
    """

    def __init__(self, longest: int = 3):
        self._longest = longest

    def propose(self, row: Row, count: int) -> list[int]:
        """See `Draft`."""
        ids = np.array(row.ids)
        for size in range(min(self._longest, len(ids) - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(ids[:-1], size)
            found = np.flatnonzero((windows == ids[-size:]).all(axis=1))
            if len(found):
                text, place = list(row.ids), int(found[-1]) + size
                for step in range(count):  # may go on into what is proposed: a text that goes round in a circle
                    text.append(text[place + step])
                return text[len(row.ids) :]
        return []


class DraftModel:
    """Proposes what a smaller model would write in the place of the `target`: with the same settings and the same draw.

    Its cache is kept from step to step of a text. Raises `ConfigError` if the two have not the same tokenizer.
    """

    def __init__(self, generator: Generator, target: Generator):
        if generator.tokenizer.identity != target.tokenizer.identity:
            raise ConfigError(
                "The draft model has another tokenizer", "Train the draft on the tokenizer of the model it writes for."
            )
        self._generator, self._more = generator, target.bias.numel() - generator.bias.numel()
        self._row: Row | None = None
        self._reader = self._new_reader()

    def propose(self, row: Row, count: int) -> list[int]:
        """See `Draft`."""
        if row is not self._row:  # another text, before which the model may have changed
            self._row, self._reader = row, self._new_reader()
        ahead = _copied(row)
        while len(ahead.ids) < len(row.ids) + min(count, self._reader.takes_back):
            token = int(pick(self._logits(ahead), [ahead])[0])
            ahead.ids.append(token)
            if token in self._generator.ends:
                break
            if ahead.seen is not None and ahead.counts is not None:
                ahead.seen[token] = True
                ahead.counts[token] += 1
            if ahead.constraint is not None:
                ahead.constraint.accept(token)
                if ahead.constraint.done:
                    break
        return ahead.ids[len(row.ids) :]

    def _logits(self, row: Row) -> Tensor:
        """As many logits (1, V) as the target has, with the bias added."""
        logits = self._reader.read([row.ids])[:, 0] + self._generator.bias
        return F.pad(logits, (0, self._more), value=-torch.inf)  # what one of them lacks is never drawn

    def _new_reader(self) -> Reader:
        return Reader(self._generator.writer, self._generator.bias.device)


def _copied(row: Row) -> Row:
    """A row that `pick` treats as this one, to go on with beside it."""
    ahead = copy.copy(row)
    ahead.ids, ahead.constraint = list(row.ids), copy.copy(row.constraint)
    ahead.seen, ahead.counts = (None if each is None else each.clone() for each in (row.seen, row.counts))
    return ahead
