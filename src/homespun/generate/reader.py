"""Reading on in texts that grow, branch and are taken back. B rows, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from homespun.generate.batch import CHUNK, CHUNK_TOKENS, evaluating, window_start
from homespun.model.cache import LayerCache, move, reorder
from homespun.model.decoder import Decoder


class Reader:
    """Reads texts of one length, in rows of one cache. What the cache holds of a text is not read again.

    `takes_back`: how many tokens can be forgotten without reading the window again, as far as is known.
    """

    def __init__(self, model: Decoder, device: torch.device):
        self._model, self._device, self._context = model, device, model.config.context
        self._texts: list[list[int]] = []  # as they were read
        self._start, self._capacity = 0, 0
        self._cache: list[LayerCache] = []
        self.takes_back = self._context

    def room(self, length: int) -> int:
        """How many tokens may follow a text of this length before its window moves."""
        return window_start(length, self._context) + self._context - length

    def read(self, texts: Sequence[Sequence[int]], last: int = 1) -> Tensor:
        """Float32 logits (B, last, V) after each of the last tokens of the texts, all of them in one window."""
        with torch.inference_mode(), evaluating(self._model):
            return self._read([list(text) for text in texts], last)

    def branch(self, rows: Sequence[int]) -> None:
        """Row i becomes what row `rows[i]` was."""
        self._texts = [self._texts[row] for row in rows]
        with torch.inference_mode():
            reorder(self._cache, torch.tensor(rows, device=self._device))

    def _read(self, texts: list[list[int]], last: int) -> Tensor:
        length = len(texts[0])
        start = window_start(length, self._context)
        known = min(self._known(texts), length - last)
        if start != self._start or known <= start or not self._forget(known):
            self._start = known = start
            self._cache = []  # frees the old one first
            self._capacity = min(self._context, 2 * (length - start))
            self._cache = self._model.new_cache(len(texts), self._capacity)
        if length - start > self._capacity:
            self._capacity = min(self._context, 2 * (length - start))
            move(self._cache, 0, self._capacity)
        self._texts = texts
        tokens = torch.tensor([text[known:] for text in texts], device=self._device)
        hidden = torch.cat([self._model.hidden(part, self._cache)[0][:, -last:] for part in self._chunks(tokens)], 1)
        return self._model.logits(hidden[:, -last:]).float()

    def _known(self, texts: list[list[int]]) -> int:
        """How many of the first tokens of each row are in the cache."""
        if len(texts) != len(self._texts):
            return 0
        return min(_common(*pair) for pair in zip(texts, self._texts, strict=True))

    def _forget(self, known: int) -> bool:
        """Keeps the first tokens of the texts; false where the cache cannot take so many back."""
        back = len(self._texts[0]) - known
        try:
            for layer in self._cache:
                layer.truncate(known - self._start)
        except IndexError:
            self.takes_back = min(self.takes_back, back - 1)
            return False
        return True

    def _chunks(self, tokens: Tensor) -> Sequence[Tensor]:
        return tokens.split(max(1, min(CHUNK, CHUNK_TOKENS // len(tokens))), dim=1)


def _common(one: list[int], other: list[int]) -> int:
    """How long the beginning is that two texts share."""
    if one[: len(other)] == other:
        return len(other)
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
