"""The memory of a decoding: keys and values of the tokens read so far. The caller owns it.

B batch, Hk key-value heads, S slots, D head size.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class LayerCache(Protocol):
    """What every layer's cache can do.

    `length` slots are filled in each row; `padding` (B,) of them, on the left, are empty.
    """

    length: int
    padding: Tensor | None

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was (beams); fewer or more rows than before are allowed."""

    def truncate(self, length: int) -> None:
        """Forgets every token from `length` on (speculation, retries)."""

    def nbytes(self) -> int:
        """Bytes it holds."""


class KeyValueCache:
    """Preallocated keys and values: appending never copies what is there already."""

    def __init__(self, batch: int, heads: int, capacity: int, head_size: int, padding: Tensor | None, like: Tensor):
        self.keys = like.new_empty(batch, heads, capacity, head_size)
        self.values = torch.empty_like(self.keys)
        self.length = 0
        self.padding = padding

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds T tokens, (B, Hk, T, D) each; returns all keys and values so far, (B, Hk, S, D)."""
        end = self.length + k.size(2)
        if end > self.keys.size(2):
            raise IndexError(f"the cache holds {self.keys.size(2)} tokens, but {end} were given")
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def reorder(self, rows: Tensor) -> None:
        self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)
        if self.padding is not None:
            self.padding = self.padding.index_select(0, rows)

    def truncate(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise IndexError(f"cannot truncate a cache of {self.length} tokens to {length}")
        self.length = length

    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes
