"""Texts that are written together: they join and leave between two tokens. B rows of the cache, T tokens, V vocabulary.

Prompts are read beside the writing, in caches of their own; when one is read, its text takes a row of the common cache.
A text leaves it when it is finished, or when its window moves and has to be read again. What a text becomes depends on
its own tokens, seed and settings alone; its company changes rounding, no more.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from homespun.generate.records import Token
from homespun.generate.row import Row
from homespun.generate.sampling import choose, draws
from homespun.model.cache import LayerCache, adopt, move, reorder
from homespun.model.decoder import Decoder

CHUNK = 512  # prompt tokens that are read at a time, in each of few rows
CHUNK_TOKENS = 4096  # and in all rows together: this bounds the memory of reading


def window_start(count: int, context: int) -> int:
    """Which of `count` tokens is the first that the model reads.

    The window grows to `context` tokens; with one more, only the newest `context // 2` (at least one) stay in it, and
    it grows again.
    """
    stride = context + 1 - max(1, context // 2)
    return max(0, -(-(count - context) // stride)) * stride


class Choice:
    """How the next token of a text follows from the logits. `bias` (V,): added to them; -inf is never drawn.

    `noise`: how far logits may be off, as a share of the largest, by rounding that depends on a text's company. Where
    that could change a choice, the window of the text is read again, alone, and decides: so a text is the same in any
    company, with any cache and any draft. None: nothing is read again.
    """

    def __init__(self, model: Decoder, bias: Tensor, noise: float | None = None):
        self.model, self.bias, self._noise = model, bias, noise

    def next(self, logits: Tensor, rows: Sequence[Row]) -> list[tuple[Row, Token]]:
        """The next token of each row, from logits (B, V)."""
        logits = logits.float()
        ids, slack = pick(logits + self.bias, rows, careful=self._noise is not None)
        if self._noise is not None:
            largest = torch.linalg.vector_norm(logits, torch.inf, -1).tolist()
            for place, row in enumerate(rows):
                if slack[place] < self._noise * largest[place]:
                    read = _Reading(self.model, [row], self.bias.device).read(None)
                    assert read is not None  # a reading without parts is read at once
                    logits[place] = read[0].float()
                    ids[place] = pick(logits[place : place + 1] + self.bias, [row])[0]
        numbers = describe(logits, ids, max(row.alternatives for row in rows)).tolist()  # the only wait for the device
        written = []
        for row, (token, log_probability, *others) in zip(rows, numbers, strict=True):
            told = [(int(other), value) for other, value in zip(others[::2], others[1::2], strict=True)]
            written.append((row, row.take(int(token), log_probability, told)))
        return written


class Batch:
    """Texts that are written together with one decoder.

    `part`: the most prompt tokens that are read between two tokens of the texts that are being written, so that a long
    prompt does not hold them up; none means that all prompts that wait are read first.
    """

    def __init__(self, choice: Choice, part: int | None = None):
        self._choice, self._model, self._device = choice, choice.model, choice.bias.device
        self._part, self._context = part, choice.model.config.context
        self._new: list[Row] = []
        self._readings: deque[_Reading] = deque()
        self._rows: list[Row | None] = []  # whose text stands in each row of the cache; none where it is free
        self._cache: list[LayerCache] = []
        self._capacity = 0

    def add(self, row: Row) -> None:
        """Takes a text in; its first token comes as soon as its prompt is read."""
        self._new.append(row)

    def drop(self, row: Row) -> None:
        """Writes no more of a text."""
        row.done = True

    @property
    def busy(self) -> bool:
        """Whether there is anything left to read or to write."""
        return bool(self._new or self._readings or any(row is not None and not row.done for row in self._rows))

    @property
    def cache_slots(self) -> int:
        """Slots of each row of the cache."""
        return self._capacity if self._rows else 0

    def step(self) -> list[tuple[Row, Token]]:
        """Reads on in a prompt that waits, and writes one token of every text whose prompt has been read."""
        with torch.inference_mode(), evaluating(self._model):
            self._leave()
            rows = [row for row in self._rows if row is not None]
            read = self._read(bool(rows))
            parts = [self._onwards()] if rows else []
            for reading, logits in read:
                rows += reading.rows
                parts.append(logits)
            if not rows:
                return []
            written = self._choice.next(parts[0] if len(parts) == 1 else torch.cat(parts), rows)
            for reading, _ in read:
                self._join(reading)
            return written

    def _read(self, writing: bool) -> list[tuple[_Reading, Tensor]]:
        """Reads on: the readings that came to their end, each with its logits after the newest tokens."""
        new, self._new = [row for row in self._new if not row.done], []
        for rows in [new] if self._part is None else _of_similar_length(new, self._context):
            if rows:
                self._readings.append(_Reading(self._model, rows, self._device))
        read = []
        while self._readings:
            reading = self._readings.popleft()
            if all(row.done for row in reading.rows):
                continue
            part = None if self._part is None else self._part if writing else CHUNK
            logits = reading.read(part)
            if logits is None:
                self._readings.append(reading)  # a short prompt need not wait for the end of a long one
            else:
                read.append((reading, logits))
            if self._part is not None:
                break
        return read

    def _onwards(self) -> Tensor:
        """Logits (., V) after the newest token of each row of the cache that is not free."""
        if self._cache[0].length == self._capacity:
            self._make_room(0)
        newest = [0 if row is None else row.ids[-1] for row in self._rows]
        hidden, _ = self._model.hidden(torch.tensor(newest, device=self._device)[:, None], self._cache)
        if None in self._rows:
            hidden = hidden[[place for place, row in enumerate(self._rows) if row is not None]]
        return self._model.logits(hidden[:, -1])

    def _leave(self) -> None:
        """Frees the rows of the texts that are done, and of those whose window has moved: these are read again."""
        for place, row in enumerate(self._rows):
            if row is not None and (row.done or window_start(len(row.ids), self._context) != row.window):
                self._rows[place] = None
                if not row.done:
                    self._new.append(row)
        free = self._rows.count(None)
        if free == len(self._rows):
            self._rows, self._cache = [], []
        elif free * 4 > len(self._rows) or not (self._new or self._readings or self._part):
            self._keep([place for place, row in enumerate(self._rows) if row is not None])
        if self._rows and self._empty() * 2 > self._cache[0].length:
            self._make_room(0)

    def _keep(self, places: list[int]) -> None:
        if len(places) < len(self._rows):
            self._rows = [self._rows[place] for place in places]
            reorder(self._cache, self._tensor(places))

    def _join(self, reading: _Reading) -> None:
        """Gives the texts that were read rows of the common cache."""
        going_on = [place for place, row in enumerate(reading.rows) if not row.done]
        if not going_on:
            return
        rows, theirs = [reading.rows[place] for place in going_on], [reading.order[place] for place in going_on]
        if not self._rows:
            self._rows, self._cache, self._capacity = list(rows), reading.cache, reading.capacity
            if theirs != list(range(reading.different)):
                reorder(self._cache, self._tensor(theirs))
            return
        free = [place for place, row in enumerate(self._rows) if row is None][: len(rows)]
        more = len(rows) - len(free)
        if more:
            reorder(self._cache, self._tensor([*range(len(self._rows)), *[0] * more]))
            free += range(len(self._rows), len(self._rows) + more)
            self._rows += [None] * more
        for place, row in zip(free, rows, strict=True):
            self._rows[place] = row
        if self._cache[0].length < reading.cache[0].length:
            self._make_room(reading.cache[0].length - self._cache[0].length)
        adopt(self._cache, self._tensor(free), reading.cache, self._tensor(theirs))

    def _make_room(self, more: int) -> None:
        """Room for all that the texts in the cache may become; what is empty in all of them goes, or `more` comes."""
        by = more or -self._empty()
        needs = [_slots(row, self._context) for row in self._rows if row is not None]
        self._capacity = max(self._cache[0].length + by, *needs)
        move(self._cache, by, self._capacity)

    def _empty(self) -> int:
        """How many slots on the left are empty in all rows."""
        held = (len(row.ids) - row.window - 1 for row in self._rows if row is not None)  # the newest is not read yet
        return self._cache[0].length - max(held)

    def _tensor(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._device)


class _Reading:
    """Prompts that are read together, a part at a time, into a cache of their own; equal ones only once.

    `order`: which row of the cache is that of each text. `different`: how many rows the cache has.
    """

    def __init__(self, model: Decoder, rows: list[Row], device: torch.device):
        self._model, self.rows = model, rows
        context = model.config.context
        for row in rows:
            row.window = window_start(len(row.ids), context)
        windows = [tuple(row.ids[row.window :]) for row in rows]
        place = {window: number for number, window in enumerate(dict.fromkeys(windows))}
        self.order, self.different = [place[window] for window in windows], len(place)
        longest = max(map(len, place))
        pads = [longest - len(window) for window in place]
        self.capacity = max(longest, *(_slots(row, context) for row in rows))  # the same slots serve the writing
        padding = torch.tensor(pads, device=device) if any(pads) else None
        self.cache = model.new_cache(self.different, self.capacity, padding)
        self._left = torch.tensor(
            [(0,) * pad + window for pad, window in zip(pads, place, strict=True)], device=device
        )  # (different, longest)

    def read(self, tokens: int | None) -> Tensor | None:
        """Reads about so many tokens more, or all; the logits (B, V) after the last ones when they are read."""
        chunk = max(1, min(CHUNK, CHUNK_TOKENS // self.different))
        some = self._left.size(1) if tokens is None else max(1, tokens // self.different)
        now, self._left = self._left[:, :some], self._left[:, some:]
        for piece in now.split(chunk, dim=1):
            hidden, _ = self._model.hidden(piece, self.cache)
        if self._left.size(1):
            return None
        wanted = [place for place, row in enumerate(self.rows) if not row.done]  # some may have been dropped meanwhile
        self.rows, self.order = [self.rows[place] for place in wanted], [self.order[place] for place in wanted]
        logits = self._model.logits(hidden[:, -1])
        return logits if self.order == list(range(self.different)) else logits[self.order]


def _slots(row: Row, context: int) -> int:
    """The most slots of a cache that a text needs: all its tokens but the last, which is not read."""
    return min(context, len(row.ids) - row.window + row.left - 1)


def _of_similar_length(rows: list[Row], context: int) -> list[list[Row]]:
    """Groups of rows that are read together: in each, the longest is less than twice as long as the shortest."""
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault((len(row.ids) - window_start(len(row.ids), context)).bit_length(), []).append(row)
    return [groups[size] for size in sorted(groups)]


def pick(logits: Tensor, rows: Sequence[Row], careful: bool = False) -> tuple[Tensor, list[float]]:
    """The next id of each row (B,), from logits (B, V) with the bias added: by the row's own settings and draw.

    It depends on the row's logits, settings, seed and number of tokens, and on nothing else in the batch. If `careful`,
    also how far the logits may be off without another choice, B; see `choose`.
    """
    bound = [place for place, row in enumerate(rows) if row.constraint is not None]
    if bound:
        allowed = torch.stack([row.constraint.allowed() for row in rows if row.constraint is not None])
        there = torch.tensor(bound, device=logits.device)
        logits = logits.index_copy(0, there, logits[bound].masked_fill(~allowed.to(logits.device), -torch.inf))
    alike: dict[tuple, list[int]] = {}
    for place, row in enumerate(rows):
        alike.setdefault(row.controls, []).append(place)
    if len(alike) == 1:
        return _pick_alike(logits, rows, careful)
    ids = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    slack = [math.inf] * len(rows)
    for places in alike.values():
        ids[places], some = _pick_alike(logits[places], [rows[place] for place in places], careful)
        for place, each in zip(places, some, strict=careful):
            slack[place] = each
    return ids, slack


def _pick_alike(logits: Tensor, rows: Sequence[Row], careful: bool) -> tuple[Tensor, list[float]]:
    sampling, uniforms, seen, counts = rows[0].sampling, None, None, None
    if sampling.temperature:
        seeds, places = ([row.seed for row in rows], [len(row.ids) for row in rows])
        uniforms = draws(np.array(seeds, dtype=np.uint64), np.array(places, dtype=np.uint64))
    if sampling.penalizes:
        seen, counts = (
            torch.stack([getattr(row, name) for row in rows]).to(logits.device) for name in ("seen", "counts")
        )
    return choose(logits, sampling, uniforms, seen, counts, careful)


def describe(logits: Tensor, ids: Tensor, alternatives: int) -> Tensor:
    """One row of numbers for each row of logits: id, log-probability, and the same for the most likely tokens.

    In float32, which holds every id exactly: a vocabulary has at most 2**24.
    """
    log_probabilities = logits.log_softmax(-1)
    parts = [ids[:, None].float(), log_probabilities.gather(1, ids[:, None])]
    if alternatives:
        best = log_probabilities.topk(min(alternatives, logits.size(-1)))
        parts.append(torch.stack((best.indices.float(), best.values), dim=-1).flatten(1))
    return torch.cat(parts, dim=1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout is off inside; every module is as before outside, also between the pieces of a stream."""
    training = [module for module in model.modules() if module.training] if model.training else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
