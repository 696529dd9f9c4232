"""Conversations to learn answers from: one to a row, so that none sees another, and only answers are asked for.

Rows are padded on their right, where no causal model looks, and batches are made of rows of similar length, so that
little is padded. A batch is a pure function of (seed, step), for any number of ranks.

N tokens, C conversations, B rows of the global batch, T the longest of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from homespun.data.batches import IGNORED, Batch, keys_of, permute
from homespun.data.formats import PIECE, Document, Meter
from homespun.data.rows import Rows, answers, row_of
from homespun.data.shards import Progress, content_hash, held_out, survey
from homespun.data.sources import File, Side, resolve, spooled
from homespun.data.tokenizer import Tokenizer
from homespun.errors import DataError

POOL = 16
"""Batches whose rows are sorted by length together."""


@dataclass(frozen=True)
class Conversations:
    """What a run is tuned on (a `homespun.data.material.Material`); `read_conversations` makes it."""

    tokenizer: Tokenizer
    key: str
    train: Rows
    valid: Rows  # may be empty
    notes: list[str] = field(default_factory=list)

    @property
    def conversations(self) -> int:
        """How many there are to train on."""
        return len(self.train.lengths)

    def batches(self, context: int, rows: int, seed: int, rank: int = 0, world: int = 1) -> ConversationBatches:
        """Batches of about as many tokens as `rows` of `context` have, the same for any number of processes."""
        count = max(1, round(rows * context / self.train.lengths.mean()))
        return ConversationBatches(self.train, count, seed, rank, world)

    def validation(self, context: int, rows: int, limit: int | None = None) -> Iterator[tuple[str, Batch]]:
        """The held-out conversations, the short ones first; with a `limit` of tokens, some of all that are there."""
        held = len(self.valid.lengths)
        shown = held if limit is None else min(held, max(1, held * limit // max(1, self.valid.count)))
        chosen = np.arange(shown) * held // max(1, shown)
        chosen = chosen[np.argsort(self.valid.lengths[chosen], kind="stable")]
        for first in range(0, shown, rows):
            yield "", self.valid.batch(chosen[first : first + rows])


class ConversationBatches:
    """`batches[step]` -> this rank's rows of the `batch_rows` conversations at `step`.

    An epoch shows every conversation once, in an order of its own. The conversations of the next few steps are sorted
    by length and cut into batches, which come in any order. Each rank takes every `world`-th row; one that is left
    without any has a row in which nothing is asked.
    """

    def __init__(self, rows: Rows, batch_rows: int, seed: int, rank: int = 0, world: int = 1):
        self.rows, self.batch_rows, self.seed, self.rank, self.world = rows, batch_rows, seed, rank, world
        conversations = len(rows.lengths)
        self.pool = max(1, min(POOL, conversations // batch_rows))
        self.steps_per_epoch = conversations / batch_rows
        self.tokens_per_step = round(batch_rows * rows.count / conversations)

    def __getitem__(self, step: int) -> Batch:
        return self.rows.batch(self.chosen(step)[self.rank :: self.world])

    def chosen(self, step: int) -> np.ndarray:
        """The conversations of a step, of all ranks, (B,)."""
        if step < 0:
            raise IndexError(f"there is no step {step}")
        pool, turn = divmod(step, self.pool)
        size, conversations = self.pool * self.batch_rows, len(self.rows.lengths)
        epoch, index = np.divmod(pool * size + np.arange(size), conversations)
        shown = permute(index, conversations, keys_of(self.seed, epoch)[1:])
        by_length = shown[np.argsort(self.rows.lengths[shown], kind="stable")].reshape(self.pool, self.batch_rows)
        return by_length[permute(np.array([turn]), self.pool, keys_of(self.seed, np.array([pool]))[1:])[0]]


def read_conversations(
    names: Sequence[str | Path],
    tokenizer: Tokenizer,
    context: int,
    fraction: float,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Conversations:
    """The conversations of some sources, `fraction` of them held out as `Corpus` does it.

    What is longer than `context` is cut at its end. Raises `DataError` for rows without an answer, and where nothing is
    left to learn.
    """
    say, sides = say or (lambda sentence: None), {"train": _Side(context), "valid": _Side(context)}
    with spooled(names) as places:
        for side, document in _documents(places, fraction, progress or (lambda *_: None), say):
            sides[side].add(document, tokenizer)
    train, valid = sides["train"], sides["valid"]
    shown, cut, empty = (len(train.rows) + len(valid.rows), train.cut + valid.cut, train.empty + valid.empty)
    if not train.rows:
        raise DataError(f"No answer fits into the model's context of {context} tokens", "Tune a model of a longer one.")
    one = len(train.rows) == 1
    notes = [f"{len(train.rows):,} conversation{'' if one else 's'} to learn from, {len(valid.rows):,} held out."]
    if cut or empty:
        notes.append(
            f"{cut + empty:,} of {shown + empty:,} are longer than the context of {context} tokens: their ends are cut "
            f"off" + (f". No answer is in what remains of {empty:,} of them: left out." if empty else ".")
        )
    for sentence in notes:
        say(sentence)
    found = Rows(train.rows), Rows(valid.rows)
    whole = hashlib.sha256(tokenizer.identity.encode())
    for rows in found:
        for array in (rows.lengths, rows.tokens, rows.targets):
            whole.update(array.tobytes() + b";")
    return Conversations(tokenizer, whole.hexdigest(), *found, notes)


class _Side:
    def __init__(self, context: int):
        self.context, self.cut, self.empty = context, 0, 0
        self.rows: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, document: Document, tokenizer: Tokenizer) -> None:
        tokens, targets = row_of(document, tokenizer)
        if not any(answers(document)):
            shown = next((part for part in document if isinstance(part, str)), "")
            raise DataError(f"A row has no answer: {shown!r:.60}", "Rows hold prompt and completion, or messages.")
        if (targets[: self.context] == IGNORED).all():
            self.empty += 1
            return
        self.cut += len(tokens) > self.context
        self.rows.append((tokens[: self.context], targets[: self.context]))


def _documents(
    places: Sequence[str | Path | File], fraction: float, progress: Progress, say: Callable[[str], None]
) -> Iterator[tuple[Side, Document]]:
    sources = resolve(places, say)
    found = survey(sources, fraction, progress)
    held = held_out([found], fraction)
    for source in sources:
        for document in source.documents(PIECE, Meter()):
            if found.declared:
                yield source.side or "train", document
            else:
                yield "valid" if content_hash(document) in held else "train", document
