"""What a learner remembers of each domain: spans of tokens to replay, and others, held out, to measure with.

What stays of a domain that grew too large is decided by a hash of each span: a fair sample that depends neither on
order nor on kills. N tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from homespun.data.batches import Batch, Batches, keys_of, permute, validation_batches
from homespun.data.corpus import Corpus, cache_folder, is_corpus
from homespun.data.sources import Side, documents
from homespun.data.tokenizer import Tokenizer
from homespun.errors import DataError
from homespun.learn.journal import Journal
from homespun.learn.parts import plain
from homespun.learn.settings import LearnConfig
from homespun.train.folder import environment_of
from homespun.train.gather import gather
from homespun.train.recipe import Recipe

CORPUS = "corpus"
"""The domain of the text that a run was trained on, where it was no mixture of named parts."""

SPAN = 512  # tokens of a span of old text


@dataclass(frozen=True)
class Tokens:
    """Ids, (N,)."""

    tokens: np.ndarray

    @property
    def count(self) -> int:
        """How many."""
        return len(self.tokens)


@dataclass(frozen=True)
class CycleText:
    """What a cycle is trained on and measured with (a `homespun.data.material.Material`)."""

    tokenizer: Tokenizer
    train: Tokens
    held: dict[str, np.ndarray]  # by domain
    key: str = "a cycle"
    conversations: int = 0
    valid: Tokens = field(default_factory=lambda: Tokens(np.zeros(0, dtype=np.int64)))

    def batches(self, context: int, rows: int, seed: int, rank: int = 0, world: int = 1) -> Batches:
        """What is trained on: each window once in an epoch."""
        return Batches(self.train, context, rows, seed, rank, world)

    def validation(self, context: int, rows: int, limit: int | None = None) -> Iterator[tuple[str, Batch]]:
        """All held-out text, each domain by itself."""
        for domain, tokens in self.held.items():
            yield from ((domain, batch) for batch in validation_batches(Tokens(tokens), context, rows))


def add_span(
    journal: Journal,
    domain: str,
    side: str,
    ids: Sequence[int] | np.ndarray,
    cycle: int | None = None,
    item: int | None = None,
) -> None:
    """Keeps a span of a domain, to `replay` or `held` out."""
    data = np.asarray(ids, dtype="<u4").tobytes()
    priority = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)
    journal.run(
        "INSERT INTO spans (domain, side, priority, cycle, item, tokens, ids) VALUES (?, ?, ?, ?, ?, ?, ?)",
        domain, side, priority, cycle, item, len(ids), data,
    )  # fmt: skip


def trim(journal: Journal, domain: str, limit: int) -> None:
    """Forgets replayed spans of a domain past `limit` tokens."""
    journal.run(
        "DELETE FROM spans WHERE id IN (SELECT id FROM (SELECT id, sum(tokens) OVER (ORDER BY priority, id) AS total "
        "FROM spans WHERE side = 'replay' AND domain = ?) WHERE total > ?)", domain, limit,
    )  # fmt: skip


def domains(journal: Journal, side: str) -> list[str]:
    """The domains that have spans on a side, in the order of their names."""
    return [str(row[0]) for row in journal.rows("SELECT DISTINCT domain FROM spans WHERE side = ? ORDER BY 1", side)]


def held(journal: Journal, limit: int) -> dict[str, np.ndarray]:
    """The held-out tokens of each domain, about `limit` of each."""
    return {name: _joined(journal, _spans(journal, "held", name), limit) for name in domains(journal, "held")}


def draw(journal: Journal, tokens: int, seed: int, new: Collection[str] = ()) -> np.ndarray:
    """About so many tokens to replay, as many of each domain, of those that have no `new` text if there are any; `seed`
    decides which spans of it."""
    names = domains(journal, "replay")
    names = [name for name in names if name not in new] or names
    parts = [np.zeros(0, dtype=np.int64)]
    for number, domain in enumerate(names):
        found = _spans(journal, "replay", domain)
        shown = found[_shuffled(len(found), len(found), seed, number)]
        parts.append(_joined(journal, shown, -(-tokens // len(names))))
    return np.concatenate(parts)


def _spans(journal: Journal, side: str, domain: str) -> np.ndarray:
    query = "SELECT id FROM spans WHERE side = ? AND domain = ? ORDER BY priority, id"
    return np.array([row[0] for row in journal.rows(query, side, domain)], dtype=np.int64)


def _joined(journal: Journal, spans: np.ndarray, limit: int) -> np.ndarray:
    taken, left = [np.zeros(0, dtype=np.int64)], limit
    for number in spans.tolist():
        if left <= 0:
            break
        data = journal.value("SELECT ids FROM spans WHERE id = ?", number)
        taken.append(np.frombuffer(data, dtype="<u4").astype(np.int64)[:left])
        left -= len(taken[-1])
    return np.concatenate(taken)


def _shuffled(count: int, size: int, seed: int, number: int) -> np.ndarray:
    """`count` different numbers below `size`, (count,)."""
    return permute(np.arange(count), size, keys_of(seed, np.full(count, number))[1:])


# -- the text that was there before --------------------------------------------------------------------------------


def remember(
    journal: Journal, folder: Path, recipe: Recipe, tokenizer: Tokenizer, settings: LearnConfig, named: Sequence[str]
) -> str:
    """Puts a sample of the text that the run was trained on into the journal, once; returns a sentence about it.

    `named`: where that text is, if the run's own folder does not say it well. Raises `DataError` where it is gone.
    """
    if journal.value("SELECT value FROM meta WHERE key = 'old'") is not None:
        return ""
    with journal.transaction():
        if named:
            _remember_documents(journal, named, tokenizer, settings)
        elif (corpus := _old_corpus(folder, recipe, tokenizer)) is not None:
            _remember_corpus(journal, corpus, settings, recipe.train.seed)
        count = journal.value("SELECT coalesce(sum(tokens), 0) FROM spans WHERE side = 'replay'")
        journal.run("INSERT INTO meta VALUES ('old', ?)", str(count))
    if not count:
        return (
            "Nothing of the text it was trained on is known: only what it learns from now on is kept. (--old names it.)"
        )
    return f"{count:,} tokens of the text it was trained on are kept to be replayed."


def _old_corpus(folder: Path, recipe: Recipe, tokenizer: Tokenizer) -> Corpus | None:
    about = environment_of(folder)
    if about.get("corpus") is None:
        return None
    place = cache_folder() / str(about["corpus"])[:32]
    data = about.get("data") or []
    try:
        corpus = Corpus.open(place) if is_corpus(place) else gather(data, recipe)
    except DataError as error:
        hint = "Name it with --old, or start with --old none to go on without it."
        raise DataError(f"The text this run was trained on is not there any more: {error.problem}", hint) from None
    if corpus.tokenizer.identity != tokenizer.identity:
        raise DataError("The text this run was trained on has another vocabulary now", "Name it with --old.")
    return corpus


def _remember_corpus(journal: Journal, corpus: Corpus, settings: LearnConfig, seed: int) -> None:
    sides: tuple[tuple[Side, str, int], ...] = (
        ("train", "replay", settings.reservoir_tokens),
        ("valid", "held", settings.evaluate_tokens),
    )
    for side, kept, limit in sides:
        for name, split in corpus.parts(side).items():
            spans = split.count // SPAN
            shown = _shuffled(min(spans, -(-limit // SPAN)), spans, seed, 0)
            for place in sorted(shown.tolist()):
                add_span(journal, name or CORPUS, kept, split.tokens[place * SPAN : (place + 1) * SPAN])
            if not spans and split.count > 1:
                add_span(journal, name or CORPUS, kept, split.tokens)


def _remember_documents(journal: Journal, names: Sequence[str], tokenizer: Tokenizer, settings: LearnConfig) -> None:
    if list(names) == ["none"]:
        return
    for text in map(plain, documents(names)):
        digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=4).digest()
        side = "held" if int.from_bytes(digest, "little") < settings.held * 2**32 else "replay"
        add_span(journal, CORPUS, side, [*tokenizer.encode(text), tokenizer.end])
    trim(journal, CORPUS, settings.reservoir_tokens)
