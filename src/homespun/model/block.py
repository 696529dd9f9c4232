"""One layer: pre-norm residual block, the mixer and then the feed-forward. B batch, T tokens, d width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from homespun.model.auxiliary import Auxiliary
from homespun.model.cache import LayerCache

if TYPE_CHECKING:
    from homespun.model.decoder import ModelConfig


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, model: ModelConfig, layer: int):
        super().__init__()
        self.input_layernorm = model.norm.build(model.width)
        self.self_attn = model.attention.build(model, layer)
        self.post_attention_layernorm = model.norm.build(model.width)
        self.mlp = model.feed_forward.build(model, layer)
        self.dropout = nn.Dropout(model.dropout) if model.dropout else nn.Identity()

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> tuple[Tensor, Auxiliary]:  # (B, T, d)
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cache))
        y, auxiliary = self.mlp(self.post_attention_layernorm(x))
        return x + self.dropout(y), auxiliary

    def rebalance(self, counts: Tensor) -> None:
        """Tells the experts how many tokens each of them took in an update, (E,)."""
        self.mlp.rebalance(counts)  # type: ignore[operator]

    def largest_scores(self, x: Tensor) -> Tensor:
        """The largest score that each head of attention gives when the layer reads x, (H,)."""
        return self.self_attn.largest_scores(self.input_layernorm(x))  # type: ignore[operator]

    def scale_scores(self, factors: Tensor) -> None:
        """Multiplies the scores of each head of attention by its factor, (H,)."""
        self.self_attn.scale_scores(factors)  # type: ignore[operator]

    def new_cache(self, batch: int, capacity: int, padding: Tensor | None) -> LayerCache:
        """An empty cache for this layer."""
        return self.self_attn.new_cache(batch, capacity, padding)
