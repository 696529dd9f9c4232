"""Mixtures: named parts of a corpus, each drawn from by itself, in proportion to weights.

P parts, B rows of the global batch, R rows of one process.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, model_validator

from homespun.config import Config
from homespun.data.batches import Batch, Tokens, Windows, keys_of, permute, share_of_rows
from homespun.data.shards import WHOLE
from homespun.errors import ConfigError, DataError

BLOCK = 1024
"""Rows among which every part has its exact share; so also the finest weight."""


class Part(Config):
    """One part of a mixture. `source`: what may stand for DATA, or a list of such. `weight`: its share of the rows,
    beside the weights of the others; none: by its size."""

    source: str | tuple[str, ...]
    weight: Annotated[float, Field(gt=0)] | None = None

    @property
    def sources(self) -> list[str | Path]:
        """As a list."""
        return [self.source] if isinstance(self.source, str) else list(self.source)


class DataConfig(Config):
    """How text becomes a corpus."""

    validation_fraction: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1
    """Share of the documents kept for validation (of 4 MB at most), where no `train.*` and `valid.*` say it."""
    mixture: dict[Annotated[str, Field(min_length=1, max_length=64)], Part] = Field(default_factory=dict)
    """Named parts to draw from, instead of the sources that are named with the run."""
    temperature: Annotated[float, Field(ge=0.01)] = 1.0
    """Of a mixture without weights: a part of N tokens weighs N ** (1 / temperature)."""

    @model_validator(mode="after")
    def _possible(self) -> DataConfig:
        weighed = [part.weight is not None for part in self.mixture.values()]
        if any(weighed) and not all(weighed):
            raise ConfigError("Only some parts of data.mixture have a weight", "Give one to each part, or to none.")
        if any(weighed) and self.temperature != 1:
            raise ConfigError("data.temperature does nothing for parts that have weights", "Leave out one of them.")
        if unclear := next((name for name in self.mixture if not name.isprintable()), None):
            raise ConfigError(f"data.mixture has the name {unclear!r}", "Write it with characters that can be seen.")
        if len(weighed) > BLOCK // 8:
            raise ConfigError(f"data.mixture has {len(weighed)} parts", f"At most {BLOCK // 8} are possible.")
        return self

    def groups(self, sources: Sequence[str | Path]) -> dict[str, list[str | Path]]:
        """The sources of each part by its name. Raises `DataError` where both the run and the mixture name some."""
        if self.mixture and sources:
            raise DataError(f"{str(sources[0])!r} stands beside data.mixture", "Name it there, with a name of its own.")
        return {name: part.sources for name, part in self.mixture.items()} or {WHOLE: list(sources)}

    def shares(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """The share of each part of so many tokens in the rows; they sum to 1."""
        weights, largest = {name: part.weight for name, part in self.mixture.items()}, max(sizes.values())
        found = {name: weights.get(name) or (size / largest) ** (1 / self.temperature) for name, size in sizes.items()}
        heaviest = max(found.values())  # by which nothing that is summed can be infinite
        total = sum(weight / heaviest for weight in found.values())
        return {name: weight / heaviest / total for name, weight in found.items()}


class MixedBatches:
    """`batches[step]` -> the rows of this rank, as `Batches` does it, drawn from `parts` by their `shares`.

    Of every `BLOCK` rows, in the order of the run, each part has its share, to the nearest row but at least one; which
    rows these are is a permutation of the block. The rows of a part are its `Windows`, in an order of its own that
    no other part changes. So a batch stays a pure function of (seed, step), for any number of ranks.
    """

    def __init__(
        self,
        parts: Mapping[str, Tokens],
        shares: Mapping[str, float],
        context: int,
        batch_rows: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ):
        self._rows = share_of_rows(batch_rows, context, rank, world)
        self._parts = [
            Windows(split, context, seed + (zlib.crc32(name.encode()) << 32)) for name, split in parts.items()
        ]
        self._ends = np.cumsum(quotas([shares[name] for name in parts]))  # (P,): in a block, the rows up to each part
        self.batch_rows, self.seed, self.tokens_per_step = batch_rows, seed, batch_rows * context
        self.steps_per_epoch = sum(part.count for part in self._parts) / batch_rows
        """Steps in which as many windows are shown as all parts have."""

    def __getitem__(self, step: int) -> Batch:
        if step < 0:
            raise IndexError(f"there is no step {step}")
        block, row = np.divmod(step * self.batch_rows + self._rows, BLOCK)
        place = permute(row, BLOCK, keys_of(self.seed, block)[1:])
        part = np.searchsorted(self._ends, place, side="right")  # (R,)
        before = np.concatenate([[0], self._ends])
        numbers = block * (before[part + 1] - before[part]) + place - before[part]
        rows = np.argsort(part, kind="stable")
        read = [self._parts[each][numbers[part == each]] for each in np.unique(part)]
        back = torch.from_numpy(np.argsort(rows, kind="stable"))
        return Batch(torch.cat([each.tokens for each in read])[back], torch.cat([each.targets for each in read])[back])


def quotas(shares: Sequence[float]) -> np.ndarray:
    """How many of `BLOCK` rows each part gets, (P,): the shares rounded by the largest remainders, none below 1."""
    exact = np.asarray(shares, dtype=np.float64) * BLOCK
    given = np.maximum(np.floor(exact), 1).astype(np.int64)
    while (left := BLOCK - int(given.sum())) > 0:
        given[np.argsort(given - exact, kind="stable")[:left]] += 1
    while given.sum() > BLOCK:  # what was raised to 1 is taken from the largest
        given[np.argmax(given)] -= 1
    return given
