"""Grouped-query attention: multi-head (kv_heads = heads), multi-query (kv_heads = 1) and all between.

B batch, T tokens, S keys, d width, H heads, Hk key-value heads, D head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from homespun.config import Config, Count
from homespun.errors import ConfigError
from homespun.model.attention.core import attend, attend_where, largest_scores, merge_heads, split_heads
from homespun.model.cache import KeyValueCache
from homespun.model.cost import PartCost, linear, mean_keys
from homespun.model.norms import RootMeanSquare, RootOfSquares
from homespun.model.packed import Packing

if TYPE_CHECKING:
    from homespun.model.decoder import ModelConfig


class GroupedAttention(Config):
    """Attention whose query heads share key-value heads (Ainslie et al., 2023).

    `kv_heads`: none means one for each head. `head_size`: none means width / heads. `window`: a token sees that many
    tokens, itself among them. `query_chunk`: compute that many queries at a time; saves memory, changes no result.
    `full_layers`: layers, counted from 0, that see everything in spite of `window`. `qk_norm`: RMS-normalise queries
    and keys in each head, before the rotation (Qwen3). `bias`: on the projections of queries, keys and values, and of
    the output unless `output_bias` says otherwise.
    """

    kind: Literal["grouped"] = "grouped"
    heads: Annotated[Count, Field(le=4096)] = 12
    kv_heads: Count | None = None
    head_size: Annotated[Count, Field(le=4096)] | None = None
    window: Count | None = None
    full_layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    query_chunk: Count | None = None
    qk_norm: bool = False
    bias: bool = False
    output_bias: bool | None = None

    def check(self, model: ModelConfig) -> None:
        """Raises `ConfigError` where the heads do not divide."""
        if self.heads % self.shared_heads:
            raise ConfigError(
                f"model.attention.kv_heads = {self.kv_heads} does not divide model.attention.heads = {self.heads}",
                f"Choose one of {[n for n in range(1, self.heads + 1) if self.heads % n == 0]}.",
            )
        if self.head_size is None and model.width % self.heads:
            raise ConfigError(
                f"model.attention.heads = {self.heads} does not divide model.width = {model.width}",
                f"Try model.width={max(1, model.width // self.heads) * self.heads}, or set model.attention.head_size.",
            )
        model.positions.in_heads(self.size(model.width))

    def check_clip(self) -> None:
        """Raises `ConfigError` where QK-Clip would do nothing."""
        if self.qk_norm:
            raise ConfigError(
                "optimizer.qk_clip scales queries, but model.attention.qk_norm undoes every scale",
                "Leave out optimizer.qk_clip (normed scores do not grow), or set model.attention.qk_norm=false.",
            )

    @property
    def shared_heads(self) -> int:
        """The number of key-value heads."""
        return self.kv_heads or self.heads

    def size(self, width: int) -> int:
        """The numbers in one head."""
        return self.head_size or width // self.heads

    @property
    def biased_output(self) -> bool:
        """Whether the output projection has a bias."""
        return self.bias if self.output_bias is None else self.output_bias

    def seen(self, layer: int) -> int | None:
        """The window of a layer; none where it sees everything."""
        return None if layer in self.full_layers else self.window

    def build(self, model: ModelConfig, layer: int) -> GroupedQueryAttention:
        """The module of one layer."""
        return GroupedQueryAttention(self, model, layer)

    def cost(self, model: ModelConfig, layer: int, length: int, causal: bool) -> PartCost:
        """What one layer costs, at a sequence of `length` tokens."""
        d, size = model.width, self.size(model.width)
        inner, shared = self.heads * size, self.shared_heads * size
        weights = linear(d, inner, self.bias) + linear(d, shared, self.bias) * 2 + linear(inner, d, self.biased_output)
        norms = 2 * size if self.qk_norm else 0
        # kept for the backward: q, k, v as used, the output twice (in heads and flat), and q, k before each change
        kept = (inner + 2 * shared) + 2 * inner + (inner + shared) * (1 + self.qk_norm)
        return weights + PartCost(
            parameters=norms,
            flops=4 * inner * mean_keys(length, self.seen(layer), causal),
            activations=kept,
            cache=2 * shared,
        )


class GroupedQueryAttention(nn.Module):
    """The attention of one layer: (B, T, d) -> (B, T, d)."""

    def __init__(self, config: GroupedAttention, model: ModelConfig, layer: int):
        super().__init__()
        self.head_size = config.size(model.width)
        self.kv_heads = config.shared_heads
        self.window, self.query_chunk = config.seen(layer), config.query_chunk
        inner, shared = config.heads * self.head_size, self.kv_heads * self.head_size
        self.q_proj = nn.Linear(model.width, inner, bias=config.bias)
        self.k_proj = nn.Linear(model.width, shared, bias=config.bias)
        self.v_proj = nn.Linear(model.width, shared, bias=config.bias)
        self.o_proj = nn.Linear(inner, model.width, bias=config.biased_output)
        self.q_norm = RootMeanSquare(self.head_size, model.norm.eps) if config.qk_norm else nn.Identity()
        self.k_norm = RootMeanSquare(self.head_size, model.norm.eps) if config.qk_norm else nn.Identity()
        self.rotation = model.positions.in_heads(self.head_size)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:  # (B, T, d) -> (B, T, d)
        start, padding = (cache.length, cache.padding) if cache is not None else (0, None)
        q, k, v = self._project(x, start, padding)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, Hk, S, D)
        return self.o_proj(merge_heads(attend(q, k, v, self.window, self.query_chunk, padding)))

    def _project(self, x: Tensor, start: int, padding: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the heads, queries and keys turned to their places."""
        q = self.q_norm(split_heads(self.q_proj(x), self.head_size))  # (B, H, T, D)
        k = self.k_norm(split_heads(self.k_proj(x), self.head_size))  # (B, Hk, T, D)
        v = split_heads(self.v_proj(x), self.head_size)
        return *self.rotation(q, k, start, padding), v

    def largest_scores(self, x: Tensor) -> Tensor:
        """The largest scaled score of each head over the tokens x (B, T, d): (H,)."""
        q, k, _ = self._project(x, 0, None)
        return largest_scores(q, k, self.window)

    @torch.no_grad()
    def scale_scores(self, factors: Tensor) -> None:
        """Multiplies the scores of each head by its factor, (H,): through the queries alone, for keys are shared."""
        for parameter in self.q_proj.parameters():
            parameter.unflatten(0, (-1, self.head_size)).mul_(factors.view(-1, *[1] * parameter.dim()))

    def new_cache(self, batch: int, capacity: int, padding: Tensor | None = None) -> KeyValueCache:
        """An empty cache for `batch` rows of up to `capacity` tokens, of the weights' type and on their device."""
        return KeyValueCache(batch, self.kv_heads, capacity, self.head_size, padding, like=self.k_proj.weight)

    def packed(self, packing: Packing) -> PackedAttention:
        """The same for decoding."""
        return PackedAttention(self, packing)


class PackedAttention(GroupedQueryAttention):
    """One product gives queries, keys and values; queries and keys are normed and turned together."""

    def __init__(self, plain: GroupedQueryAttention, packing: Packing):
        nn.Module.__init__(self)
        self.head_size, self.kv_heads = plain.head_size, plain.kv_heads
        self.window, self.query_chunk = plain.window, plain.query_chunk
        self.heads = plain.q_proj.out_features // self.head_size
        self.qkv_proj = packing.linear(plain.q_proj, plain.k_proj, plain.v_proj)
        self.o_proj = packing.linear(plain.o_proj)  # type: ignore[assignment]
        self.qk_norm = _joined(plain.q_norm, self.heads, plain.k_norm, self.kv_heads)
        self.rotation = plain.rotation.packed(packing)  # type: ignore[operator]

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:  # (B, T, d) -> (B, T, d)
        if cache is None or x.size(1) > 1:
            return super().forward(x, cache)
        q, k, v = self._project(x, cache.length, cache.padding)
        k, v = cache.append(k, v)  # (B, Hk, S, D)
        first = max(0, k.size(2) - self.window) if self.window else 0
        return self.o_proj(merge_heads(attend_where(q, k[:, :, first:], v[:, :, first:], cache.seen(first))))

    def _project(self, x: Tensor, start: int, padding: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        qkv = split_heads(self.qkv_proj(x), self.head_size)  # (B, H + 2 Hk, T, D)
        qk = self.rotation.onwards(self.qk_norm(qkv[:, : -self.kv_heads]), start, padding)  # type: ignore[operator]
        return qk[:, : self.heads], qk[:, self.heads :], qkv[:, -self.kv_heads :]

    def new_cache(self, batch: int, capacity: int, padding: Tensor | None = None) -> KeyValueCache:
        """An empty cache for `batch` rows of up to `capacity` tokens."""
        return KeyValueCache(batch, self.kv_heads, capacity, self.head_size, padding, like=self.o_proj.weight)


def _joined(q_norm: nn.Module, heads: int, k_norm: nn.Module, kv_heads: int) -> nn.Module:
    """One norm for queries and keys beside each other, (B, H + Hk, T, D)."""
    if not isinstance(q_norm, RootMeanSquare) or not isinstance(k_norm, RootMeanSquare):
        return nn.Identity()
    weight = torch.cat((q_norm.weight.expand(heads, -1), k_norm.weight.expand(kv_heads, -1)))
    return RootOfSquares(weight[:, None], q_norm.eps)
