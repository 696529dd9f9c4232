"""Causal latent attention: tokens see a window of tokens and, beyond it, the latents of finished blocks.

Each block of W tokens is read by L learned latents when it ends. Every later token of the next M blocks reads them, and
no token reads a block that has not ended: nothing flows backwards. What a decoding keeps does not grow with the text.

B batch, N blocks, T tokens, S keys, W tokens of a block, L latents, M blocks of memory, d width, H heads,
Hk key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from homespun.config import Config, Count
from homespun.errors import ConfigError
from homespun.model.attention.core import attend_where, merge_heads, split_heads
from homespun.model.attention.grouped import GroupedAttention
from homespun.model.attention.latent_cache import CausalLatentCache
from homespun.model.cost import PartCost, linear, mean_keys
from homespun.model.norms import RootMeanSquare

if TYPE_CHECKING:
    from homespun.model.decoder import ModelConfig


class CausalLatentAttention(Config):
    """Local attention, and a memory of latents that compress each block of tokens.

    `kv_heads`: none means one for each head. `head_size`: none means width / heads. `block`: tokens of a block, and how
    many tokens a token sees directly, itself among them. `latents`: vectors that a finished block becomes. `memory`:
    how many blocks before its own a token reads; latents look back as far, so a layer reaches 2 * memory - 1 blocks.
    """

    kind: Literal["latent"] = "latent"
    heads: Annotated[Count, Field(le=4096)] = 12
    kv_heads: Count | None = None
    head_size: Annotated[Count, Field(le=4096)] | None = None
    block: Count = 64
    latents: Annotated[Count, Field(le=4096)] = 16
    memory: Annotated[Count, Field(le=4096)] = 4

    def check(self, model: ModelConfig) -> None:
        """Raises `ConfigError` where the heads do not divide, or no block would ever end before the context does."""
        GroupedAttention(heads=self.heads, kv_heads=self.kv_heads, head_size=self.head_size).check(model)
        if self.block >= model.context:
            raise ConfigError(
                f"model.attention.block = {self.block} ends no block to be read within model.context = {model.context}",
                "Make it a quarter of the context or less.",
            )

    def check_clip(self) -> None:
        """Raises `ConfigError`: tokens and latents ask in three ways, each with queries of its own."""
        raise ConfigError("optimizer.qk_clip cannot clip model.attention.kind = latent", "Leave out optimizer.qk_clip.")

    @property
    def shared_heads(self) -> int:
        """The number of key-value heads."""
        return self.kv_heads or self.heads

    def size(self, width: int) -> int:
        """The numbers in one head."""
        return self.head_size or width // self.heads

    def build(self, model: ModelConfig, layer: int) -> LatentAttention:
        """The module of one layer."""
        return LatentAttention(self, model)

    def state_numbers(self, model: ModelConfig) -> int:
        """How many numbers a decoding keeps of one sequence, however long: see `CausalLatentCache`."""
        slots = 2 * self.block + 2 * (self.memory + 2) * self.latents
        return 2 * self.shared_heads * self.size(model.width) * slots

    def cost(self, model: ModelConfig, layer: int, length: int, causal: bool) -> PartCost:
        """What one layer costs, at a sequence of `length` tokens. If not `causal`, with what is masked or filled up."""
        d, w, n, blocks = model.width, self.block, self.latents, -(-length // self.block)
        inner, shared, reach = self.heads * self.size(d), self.shared_heads * self.size(d), min(self.memory, blocks)
        both = linear(d, shared) * 2
        whole, read = linear(d, inner) + both + linear(inner, d), linear(d, inner) + linear(inner, d)
        memory = n * (mean_keys(blocks, self.memory, True) if causal else reach)
        seen = memory + mean_keys(length, w, True) if causal else (memory + 2 * w) * blocks * w / length
        # the latents ask all blocks the same, get something of each, and tell it to each other and to the tokens
        asked = linear(d, inner).flops + (blocks - 1) * (4 * inner * w + linear(inner, d).flops) if blocks > 1 else 0
        latents = n * (asked + blocks * (whole.flops + 4 * inner * memory + both.flops))
        # kept for the backward: q, the output twice (in heads and flat), k and v as read by latents and by tokens; of
        # each latent its states and their norms, q and the outputs of both attentions, k and v as other latents see it
        kept = 3 * inner + 2 * shared * (3 + reach * n / w) + (6 * d + 6 * inner + 2 * reach * shared) * n / w
        return PartCost(
            parameters=2 * whole.parameters + read.parameters + (n + 3) * d,
            flops=whole.flops + 4 * inner * seen + latents / length,
            activations=round(kept),
            state=self.state_numbers(model),
        )


class LatentAttention(nn.Module):
    """The attention of one layer: (B, T, d) -> (B, T, d).

    The latents of block c take the place where block c + 1 begins, (c + 1) * W. Block -1 is made of the learned latents
    alone, so that every token has something to read.
    """

    def __init__(self, config: CausalLatentAttention, model: ModelConfig):
        super().__init__()
        self.config, self.head_size, d = config, config.size(model.width), model.width
        inner, shared = config.heads * self.head_size, config.shared_heads * self.head_size
        self.q_proj = nn.Linear(d, inner, bias=False)
        self.k_proj = nn.Linear(d, shared, bias=False)
        self.v_proj = nn.Linear(d, shared, bias=False)
        self.o_proj = nn.Linear(inner, d, bias=False)
        self.latents = nn.Parameter(torch.randn(config.latents, d) * 0.02)  # Z0
        self.read_norm = RootMeanSquare(d, model.norm.eps)
        self.read_q_proj = nn.Linear(d, inner, bias=False)
        self.read_o_proj = nn.Linear(inner, d, bias=False)
        self.latent_norm = RootMeanSquare(d, model.norm.eps)
        self.latent_q_proj = nn.Linear(d, inner, bias=False)
        self.latent_k_proj = nn.Linear(d, shared, bias=False)
        self.latent_v_proj = nn.Linear(d, shared, bias=False)
        self.latent_o_proj = nn.Linear(inner, d, bias=False)
        self.memory_norm = RootMeanSquare(d, model.norm.eps)
        self.rotation = model.positions.in_heads(self.head_size)

    def forward(self, x: Tensor, cache: CausalLatentCache | None = None) -> Tensor:  # (B, T, d) -> (B, T, d)
        start, padding = (cache.length, cache.padding) if cache is not None else (0, None)
        q = split_heads(self.q_proj(x), self.head_size)  # (B, H, T, D)
        k = split_heads(self.k_proj(x), self.head_size)  # (B, Hk, T, D)
        v = split_heads(self.v_proj(x), self.head_size)
        q, k = self.rotation(q, k, start, padding)
        y = self._all_blocks(q, k, v) if cache is None else self._onwards(q, k, v, cache)
        return self.o_proj(merge_heads(y))

    def _all_blocks(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """All blocks of whole sequences at once, (B, H, T, D). Masks are those of the N blocks: each is shared by the
        batch, whose rows count as more heads of a block."""
        (batch, _, tokens, _), w = q.shape, self.config.block
        q, k, v = (_in_blocks(each, w) for each in (q, k, v))  # (N, B * H, W, D)
        blocks, device = q.size(0), q.device
        reach, starts = min(self.config.memory, blocks), range(0, blocks * w, w)

        z = self._learned(batch)  # of blocks -1 to N - 2, (N, B, L, d): no token reads the last block's latents
        if blocks > 1:
            z = torch.cat((z, self._read(z, k[:-1], v[:-1], starts[1:])))
        far = _began(blocks, reach, self.config.latents, device)  # (N, 1, 1, reach * L)
        lq, lk, lv = self._latent_qkv(z, starts)
        mk, mv = self._memory(self._among(z, lq, _look_back(lk, reach), _look_back(lv, reach), far), starts)
        ago = torch.arange(w, device=device)[:, None] - torch.arange(-w, w, device=device)  # (W, 2W)
        near = (ago >= 0) & (ago < w) & _began(blocks, 2, w, device)  # (N, 1, W, 2W)
        k = torch.cat((_look_back(mk, reach), _look_back(k, 2)), dim=2)  # (N, B * Hk, reach * L + 2W, D)
        v = torch.cat((_look_back(mv, reach), _look_back(v, 2)), dim=2)
        y = attend_where(q, k, v, torch.cat((far.expand(-1, -1, w, -1), near), dim=-1))
        return y.unflatten(1, (batch, -1)).movedim(0, 2).flatten(2, 3)[:, :, :tokens]

    def _onwards(self, q: Tensor, k: Tensor, v: Tensor, cache: CausalLatentCache) -> Tensor:
        """The T tokens after those in the cache, in pieces of up to W: in each, at most one block of a row ends. Keys,
        values and latents come from the input alone, so a block may be closed before its tokens are answered."""
        parts = []
        for piece, keys, values in zip(*(each.split(self.config.block, dim=2) for each in (q, k, v)), strict=True):
            rows, block = cache.append(keys, values)
            if len(rows):
                z = self._read(self._learned(1), *cache.block(rows, block), ((block + 1) * self.config.block).tolist())
                self._remember(cache, rows, block, z)
            parts.append(attend_where(piece, cache.tokens[0], cache.tokens[1], cache.seen(piece.size(2))))
        return torch.cat(parts, dim=2)

    def _remember(self, cache: CausalLatentCache, rows: Tensor, block: Tensor, z: Tensor) -> None:
        """Puts the latents z (n, 1, L, d) of one block of each of n rows where later tokens and latents find them."""
        place = ((block + 1) * self.config.block).tolist()
        q, k, v = self._latent_qkv(z, place)
        cache.put(cache.among, rows, block, k, v)
        k, v = (store[rows] for store in cache.among)
        z = self._among(z, q, k, v, cache.seen_memory(block + 1)[:, None, None].to(z.device))
        cache.put(cache.tokens, rows, block, *self._memory(z, place))

    # Below, N blocks, each at its place (N,), of B sequences; in a decoding N rows, each with one block, and B = 1.
    # Places are numbers and rows a tensor of the CPU, so that nothing waits for the device.

    def _learned(self, batch: int) -> Tensor:
        """The latents before they read anything, (1, B, L, d). A copy: the hooks of torch's FLOP counter need one."""
        return self.latents.repeat(1, batch, 1, 1)

    def _read(self, z: Tensor, k: Tensor, v: Tensor, place: Sequence[int]) -> Tensor:
        """The learned latents (1, B, L, d) after each block of tokens, (N, B * Hk, W, D), was read: (N, B, L, d)."""
        q = self._heads(self.read_q_proj(self.read_norm(z))).expand(k.size(0), -1, -1, -1)
        y = attend_where(self._turned(q, place), k, v, None)
        return z + self.read_o_proj(merge_heads(y.unflatten(1, (z.size(1), -1))))

    def _latent_qkv(self, z: Tensor, place: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """What the latents (N, B, L, d) ask and tell each other: (N, B * H, L, D) and twice (N, B * Hk, L, D)."""
        z = self.latent_norm(z)
        q, k = self._heads(self.latent_q_proj(z)), self._heads(self.latent_k_proj(z))
        return self._turned(q, place), self._turned(k, place), self._heads(self.latent_v_proj(z))

    def _among(self, z: Tensor, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        """The latents (N, B, L, d) after they saw each other."""
        y = attend_where(q, k, v, seen)
        return z + self.latent_o_proj(merge_heads(y.unflatten(1, (z.size(1), -1))))

    def _memory(self, z: Tensor, place: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Keys and values that tokens read of the latents (N, B, L, d): twice (N, B * Hk, L, D)."""
        z = self.memory_norm(z)
        return self._turned(self._heads(self.k_proj(z)), place), self._heads(self.v_proj(z))

    def _heads(self, x: Tensor) -> Tensor:
        """(N, B, L, H * D) -> (N, B * H, L, D)"""
        return split_heads(x, self.head_size).flatten(1, 2)

    def _turned(self, x: Tensor, place: Sequence[int]) -> Tensor:
        """(N, B * H, L, D), turned to the one place of each block's latents, of N. To the rotation these are N rows of
        one token, the last of them all, and each padded so far that the token has its place."""
        last, rows = max(place), x.flatten(1, 2)[:, :, None]  # (N, B * H * L, 1, D)
        padding = last - torch.tensor(place, device=x.device)
        return self.rotation(rows, rows[:, :0], last, padding)[0].view_as(x)

    @torch.no_grad()
    def new_cache(self, batch: int, capacity: int, padding: Tensor | None = None) -> CausalLatentCache:
        """An empty cache for `batch` rows, of the weights' type and on their device. It has room for any length."""
        cache = CausalLatentCache(self.config, batch, self.head_size, padding, like=self.k_proj.weight)
        self._remember(cache, torch.arange(batch), torch.full((batch,), -1), self._learned(batch).transpose(0, 1))
        return cache


def _in_blocks(x: Tensor, block: int) -> Tensor:
    """(B, H, T, D) -> (N, B * H, W, D), with zeros after the last token."""
    return F.pad(x, (0, 0, 0, -x.size(2) % block)).unflatten(2, (-1, block)).movedim(2, 0).flatten(1, 2)


def _look_back(x: Tensor, reach: int) -> Tensor:
    """What each block and those before it hold, `reach` in all: (N, B * H, R, D) -> (N, B * H, reach * R, D)."""
    return F.pad(x, (0, 0, 0, 0, 0, 0, reach - 1, 0)).unfold(0, reach, 1).movedim(-1, 2).flatten(2, 3)


def _began(blocks: int, reach: int, rows: int, device: torch.device) -> Tensor:
    """Which rows that `_look_back` gives are not the zeros before the first block, (N, 1, 1, reach * R)."""
    block = torch.arange(blocks, device=device)[:, None] + torch.arange(1 - reach, 1, device=device)
    return (block >= 0).repeat_interleave(rows, dim=1)[:, None, None]
