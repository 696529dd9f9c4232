"""The memory of a decoding: keys and values of the tokens read so far. The caller owns it.

B batch, Hk key-value heads, S slots, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

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

    def adopt(self, rows: Tensor, other: Any, theirs: Tensor) -> None:
        """Row `rows[i]` becomes what row `theirs[i]` of another cache of this kind is, which is not longer than this
        one: its newest token stands in this one's newest slot, and what is left of it is padding."""

    def move(self, by: int, capacity: int) -> None:
        """Moves every row `by` slots to the right, into room for `capacity` tokens. What goes off on the left is lost:
        padding, or tokens of rows that nobody needs."""

    def nbytes(self) -> int:
        """Bytes it holds."""


def reorder(caches: Sequence[LayerCache], rows: Tensor) -> None:
    """`LayerCache.reorder` for all layers of a decoder, whose padding stays one tensor."""
    for layer in caches:
        layer.reorder(rows)
        layer.padding = caches[0].padding


def adopt(caches: Sequence[LayerCache], rows: Tensor, others: Sequence[LayerCache], theirs: Tensor) -> None:
    """`LayerCache.adopt` for all layers of a decoder, whose padding stays one tensor."""
    for layer, other in zip(caches, others, strict=True):
        layer.adopt(rows, other, theirs)
        layer.padding = caches[0].padding


def move(caches: Sequence[LayerCache], by: int, capacity: int) -> None:
    """`LayerCache.move` for all layers of a decoder, whose padding stays one tensor."""
    for layer in caches:
        layer.move(by, capacity)
        layer.padding = caches[0].padding


def adopted_padding(cache: LayerCache, rows: Tensor, other: LayerCache, theirs: Tensor, batch: int) -> Tensor:
    """The padding (B,) of a cache after `LayerCache.adopt`."""
    mine = rows.new_zeros(batch) if cache.padding is None else cache.padding
    added = rows.new_zeros(len(theirs)) if other.padding is None else other.padding[theirs]
    return mine.index_copy(0, rows, added + cache.length - other.length)


def moved_padding(cache: LayerCache, by: int, like: Tensor) -> Tensor | None:
    """The padding (B,) of a cache after `LayerCache.move`; `like` has B rows, on its device."""
    if cache.padding is not None:
        return (cache.padding + by).clamp(min=0)
    return torch.full((len(like),), by, device=like.device) if by else None


class _Slots:
    """Preallocated tensors (B, heads, capacity, size): appending never copies what is there already."""

    def __init__(self, stores: list[Tensor], padding: Tensor | None):
        self.stores = stores
        self.length = 0
        self.padding = padding
        self._filled = self._not_padded()

    def seen(self, first: int = 0) -> Tensor | None:
        """Which slots from `first` on the newest token sees, (B, 1, 1, S - first); none means all of them."""
        return None if self._filled is None else self._filled[..., first : self.length]

    def _not_padded(self) -> Tensor | None:
        """(B, 1, 1, capacity), made once for all steps."""
        if self.padding is None:
            return None
        return torch.arange(self.stores[0].size(2), device=self.padding.device) >= self.padding[:, None, None, None]

    def _claim(self, tokens: int) -> slice:
        """The slots of the next `tokens`, counted as filled from now on."""
        start, end, capacity = self.length, self.length + tokens, self.stores[0].size(2)
        if end > capacity:
            raise IndexError(f"the cache holds {capacity} tokens, but {end} were given")
        self.length = end
        return slice(start, end)

    def reorder(self, rows: Tensor) -> None:
        self.stores = [store.index_select(0, rows) for store in self.stores]
        if self.padding is not None:
            self.padding = self.padding.index_select(0, rows)
            self._filled = self._not_padded()

    def truncate(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise IndexError(f"cannot truncate a cache of {self.length} tokens to {length}")
        self.length = length

    def adopt(self, rows: Tensor, other: _Slots, theirs: Tensor) -> None:
        for store, new in zip(self.stores, other.stores, strict=True):
            store[rows, :, self.length - other.length : self.length] = new[theirs, :, : other.length]
        self.padding = adopted_padding(self, rows, other, theirs, self.stores[0].size(0))
        self._filled = self._not_padded()

    def move(self, by: int, capacity: int) -> None:
        first, stores = max(0, -by), self.stores
        self.stores = [store.new_empty(*store.shape[:2], capacity, store.size(3)) for store in stores]
        for new, old in zip(self.stores, stores, strict=True):
            # zeros, for the kernel multiplies what is masked by 0, and chance bits may be NaN
            new[:, :, : first + by] = 0
            new[:, :, first + by : self.length + by] = old[:, :, first : self.length]
        self.padding = moved_padding(self, by, stores[0])
        self.length += by
        self._filled = self._not_padded()

    def nbytes(self) -> int:
        return sum(store.nbytes for store in self.stores)


class KeyValueCache(_Slots):
    """Keys and values of each head."""

    def __init__(self, batch: int, heads: int, capacity: int, head_size: int, padding: Tensor | None, like: Tensor):
        super().__init__([like.new_empty(batch, heads, capacity, head_size) for _ in range(2)], padding)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds T tokens, (B, Hk, T, D) each; returns all keys and values so far, (B, Hk, S, D)."""
        new = self._claim(k.size(2))
        keys, values = self.stores
        keys[:, :, new], values[:, :, new] = k, v
        return keys[:, :, : self.length], values[:, :, : self.length]


class LatentCache(_Slots):
    """What multi-head latent attention keeps of a token: its latent (r) and its rotary key (dr), beside each other."""

    def __init__(self, batch: int, capacity: int, rank: int, rope: int, padding: Tensor | None, like: Tensor):
        super().__init__([like.new_empty(batch, 1, capacity, rank + rope)], padding)
        self.rank = rank

    def append(self, kv: Tensor, kr: Tensor) -> tuple[Tensor, Tensor]:
        """Adds T tokens, (B, 1, T, r) and (B, 1, T, dr); returns both of all tokens so far."""
        new = self._claim(kv.size(2))
        self.stores[0][:, :, new, : self.rank], self.stores[0][:, :, new, self.rank :] = kv, kr
        return self.kv, self.kr

    @property
    def filled(self) -> Tensor:
        """Latents and rotary keys of all tokens so far, (B, S, r + dr)."""
        return self.stores[0][:, 0, : self.length]

    @property
    def kv(self) -> Tensor:
        """A view of the latents, (B, 1, S, r)."""
        return self.stores[0][:, :, : self.length, : self.rank]

    @property
    def kr(self) -> Tensor:
        """A view of the rotary keys, (B, 1, S, dr)."""
        return self.stores[0][:, :, : self.length, self.rank :]
