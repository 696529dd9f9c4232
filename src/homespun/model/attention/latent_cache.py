"""What causal latent attention keeps of the tokens read so far.

B batch, T tokens, W tokens of a block, L latents, M blocks of memory, Hk key-value heads, D head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from homespun.model.cache import adopted_padding, moved_padding

if TYPE_CHECKING:
    from homespun.model.attention.latent import CausalLatentAttention


class CausalLatentCache:
    """The memory of a decoding, of the same size for any length. What a slot holds follows from the place of the token
    that looks, so what is stale or empty is never seen. Places are those of a row, and below 0 for its padding.

    Of tokens, a ring of 2W slots with place p in slot p % 2W: a token needs W, itself among them, while up to W are
    written at once or were taken back; 2W - 1 would do. Of latents, block -1, which stays, and a ring of M + 1 with
    block c in slot c % (M + 1): M that are read, and the one that ends among the tokens written or taken back.
    """

    def __init__(self, config: CausalLatentAttention, batch: int, head_size: int, padding: Tensor | None, like: Tensor):
        self.window, self.latents, self.memory = config.block, config.latents, config.memory
        self.length, self.padding = 0, padding
        self._furthest = 0  # the length before anything was taken back: what it overwrote is gone
        self._starts = [0] * batch if padding is None else padding.tolist()  # known here, no wait for the device
        self._far = (config.memory + 2) * config.latents
        slots = (2 * self.window + self._far,) * 2 + (self._far,) * 2
        # zeros, for the kernel multiplies what is masked by 0, and chance bits may be NaN
        stores = [like.new_zeros(batch, config.shared_heads, each, head_size) for each in slots]
        self.tokens, self.among = stores[:2], stores[2:]  # keys and values that tokens see, and that latents see

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds up to W tokens, (B, Hk, T, D). Returns the rows in which a block ended, and its number, twice (n,)."""
        start, self.length = self.length, self.length + k.size(2)
        self._furthest = max(self._furthest, self.length)
        slots = (self._places(k.size(2)) % (2 * self.window))[:, None, :, None].expand_as(k)
        for store, new in zip(self.tokens, (k, v), strict=True):
            store.scatter_(2, slots, new.to(store.dtype))
        before = [max(start - first, 0) // self.window for first in self._starts]
        after = [(self.length - first) // self.window for first in self._starts]
        rows = [row for row, (old, new) in enumerate(zip(before, after, strict=True)) if new > old]
        return torch.tensor(rows, dtype=torch.int64), torch.tensor([after[row] - 1 for row in rows], dtype=torch.int64)

    def block(self, rows: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the tokens of one block of each of these rows, (n, Hk, W, D)."""
        place = torch.arange(self.window) + block[:, None] % 2 * self.window  # (n, W)
        k, v = (store[rows[:, None], :, place].transpose(1, 2) for store in self.tokens)
        return k, v

    def seen(self, tokens: int) -> Tensor:
        """Which slots each of the last `tokens` tokens sees, (B or 1, 1, T, slots)."""
        place = self._places(tokens).clamp(min=0)[..., None]  # (B or 1, T, 1); what is padding sees block -1
        ago = (place - torch.arange(2 * self.window, device=place.device)) % (2 * self.window)
        near = (ago < self.window) & (ago <= place)
        return torch.cat((near, self.seen_memory(place[..., 0] // self.window)), dim=-1)[:, None]

    def seen_memory(self, block: Tensor) -> Tensor:
        """Which latents are seen by a token of `block`, and by the latents of the block before: (..., slots)."""
        newest, ring = block[..., None] - 1, self.memory + 1
        ago = (newest - torch.arange(ring, device=block.device)) % ring
        seen = torch.cat((newest < self.memory - 1, (ago < self.memory) & (ago <= newest)), dim=-1)
        return seen.repeat_interleave(self.latents, dim=-1)

    def put(self, stores: list[Tensor], rows: Tensor, block: Tensor, k: Tensor, v: Tensor) -> None:
        """Keeps what is seen of the latents of one block of each of these rows, twice (n, Hk, L, D)."""
        slot = torch.where(block < 0, 0, 1 + block % (self.memory + 1)) * self.latents
        slots = slot[:, None] + torch.arange(-self._far, self.latents - self._far)  # from the end
        for store, new in zip(stores, (k, v), strict=True):
            store[rows[:, None], :, slots + store.size(2)] = new.transpose(1, 2).to(store.dtype)

    def _places(self, tokens: int) -> Tensor:
        """Places of the last `tokens` tokens, (B or 1, T); those of padding are below 0."""
        place = torch.arange(self.length - tokens, self.length, device=self.tokens[0].device)[None]
        return place if self.padding is None else place - self.padding[:, None]

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was (beams); fewer or more rows than before are allowed."""
        self.tokens, self.among = ([each.index_select(0, rows) for each in part] for part in (self.tokens, self.among))
        self._starts = [0] * len(rows)
        if self.padding is not None:
            self.padding = self.padding.index_select(0, rows)
            self._starts = self.padding.tolist()

    def truncate(self, length: int) -> None:
        """Forgets every token from `length` on: the last W of all that were ever read, or all of them, or any number
        while no more than 2W were read. Raises `IndexError` beyond, where what is needed is gone."""
        if not 0 <= length <= self.length:
            raise IndexError(f"cannot truncate a cache of {self.length} tokens to {length}")
        first, back = min(self._starts, default=0), self._furthest - length
        if length > first and back > self.window and self._furthest - first > 2 * self.window:
            raise IndexError(f"only {self.window} of {self._furthest} tokens read can be taken back, not {back}")
        self.length = length
        if length <= first:
            self._furthest = length

    def adopt(self, rows: Tensor, other: CausalLatentCache, theirs: Tensor) -> None:
        """See `LayerCache.adopt`. Slots follow from a row's own places, which do not change."""
        for mine, others in zip(self.tokens + self.among, other.tokens + other.among, strict=True):
            mine[rows] = others[theirs]
        self.padding = adopted_padding(self, rows, other, theirs, len(self._starts))
        self._starts = self.padding.tolist()

    def move(self, by: int, capacity: int) -> None:
        """See `LayerCache.move`: nothing but a count."""
        self.padding = moved_padding(self, by, self.tokens[0])
        self._starts = [start + by for start in self._starts]
        self.length, self._furthest = self.length + by, self._furthest + by

    def nbytes(self) -> int:
        """Bytes it holds."""
        return sum(store.nbytes for store in self.tokens + self.among)
