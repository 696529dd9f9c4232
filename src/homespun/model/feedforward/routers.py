"""Which experts a token goes to, and how much each of them says. N tokens, d width, E experts, K of them for a token.

A routing strategy is a kind: a config and the module it builds. Another one gives, from (N, d), a `Routing`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from homespun.config import Config, Count
from homespun.errors import ConfigError


@dataclass(frozen=True)
class Routing:
    """chosen: the experts of each token, (N, K) int64. weights: what their outputs are multiplied by, (N, K).
    logits: the router's scores before any squashing, (N, E). shares: them as probabilities that sum to 1, (N, E)."""

    chosen: Tensor
    weights: Tensor
    logits: Tensor
    shares: Tensor


class TopK(Config):
    """What routers that take the `top_k` best experts of a token have in common.

    `normalize`: the weights of a token's experts sum to 1; then they are multiplied by `scale`. `groups`: the experts
    are divided into so many, and only those of the `top_groups` best groups are candidates. `bias_rate`: the size of
    the step by which, after each update, an expert's bias rises if it had too few tokens and falls if it had too many;
    the bias counts in choosing, not in the weights (Wang et al., 2024). 0 keeps a bias that does not move; none has no
    bias. `precision`: the type in which the scores are computed. `weights_precision`: that of the weights.
    """

    top_k: Count = 2
    normalize: bool = True
    scale: Annotated[float, Field(gt=0)] = 1.0
    groups: Count = 1
    top_groups: Count = 1
    bias_rate: Annotated[float, Field(ge=0)] | None = None
    precision: Literal["fp32", "model"] = "fp32"
    weights_precision: Literal["fp32", "model"] = "fp32"

    def check(self, experts: int) -> None:
        """Raises `ConfigError` where there are not so many experts."""
        if experts % self.groups or self.top_groups > self.groups:
            raise ConfigError(
                f"{experts} experts cannot be divided into {self.groups} groups of which {self.top_groups} are taken",
                "Let router.groups divide the experts, and router.top_groups be no more than that.",
            )
        if self.top_k > (candidates := experts // self.groups * self.top_groups):
            raise ConfigError(
                f"router.top_k = {self.top_k}, but a token can choose among {candidates} experts",
                "Choose fewer, or let there be more experts.",
            )


class SoftmaxRouter(TopK):
    """Scores are the softmax over all experts (Shazeer et al., 2017; Mixtral, Qwen3-MoE).

    A group is as good as its best expert (DeepSeek-V2).
    """

    kind: Literal["softmax"] = "softmax"

    def build(self, width: int, experts: int) -> TopKRouter:
        """The module."""
        return TopKRouter(self, width, experts, shares=lambda logits: logits.softmax(-1), group_best=1)


class SigmoidRouter(TopK):
    """Scores are the sigmoid of each expert by itself (DeepSeek-V3, Kimi-K2).

    A group is as good as its two best experts together.
    """

    kind: Literal["sigmoid"] = "sigmoid"
    bias_rate: Annotated[float, Field(ge=0)] | None = 1e-3

    def build(self, width: int, experts: int) -> TopKRouter:
        """The module."""
        return TopKRouter(self, width, experts, shares=torch.sigmoid, group_best=2)


Router = Annotated[SoftmaxRouter | SigmoidRouter, Field(discriminator="kind")]
"""The union of the kinds; another kind is one more class and one more word here."""


class TopKRouter(nn.Module):
    """(N, d) -> `Routing`. `shares`: from logits to scores. `group_best`: how many of its best experts rate a group."""

    e_score_correction_bias: Tensor

    def __init__(self, config: TopK, width: int, experts: int, shares: Callable[[Tensor], Tensor], group_best: int):
        super().__init__()
        self.config, self.scores, self.group_best = config, shares, min(group_best, experts // config.groups)
        self.weight = nn.Parameter(torch.empty(experts, width))
        if config.bias_rate is not None:
            self.register_buffer("e_score_correction_bias", torch.zeros(experts))

    def forward(self, x: Tensor) -> Routing:
        """Tokens (N, d) to their experts. Gradients reach the router through the weights, never through the choice."""
        c = self.config
        with torch.autocast(x.device.type, enabled=False):
            exact = torch.promote_types(x.dtype, torch.float32)
            x = x.to(exact) if c.precision == "fp32" else x
            logits = F.linear(x, self.weight.to(x.dtype)).to(exact)
            scores = self.scores(logits)
            with torch.no_grad():
                chosen = self._candidates(scores).topk(c.top_k, dim=-1, sorted=False).indices
            weights = scores.gather(1, chosen)
            if c.normalize:
                weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
            if c.weights_precision == "model":
                weights = weights.to(x.dtype)
            return Routing(chosen, weights * c.scale, logits, scores / (scores.sum(-1, keepdim=True) + 1e-20))

    def _candidates(self, scores: Tensor) -> Tensor:
        """The scores to choose by: biased, and minus infinity for experts of groups that are out."""
        c = self.config
        if c.bias_rate is not None:
            scores = scores + self.e_score_correction_bias
        if c.groups == c.top_groups:
            return scores
        by_group = scores.unflatten(-1, (c.groups, -1))  # (N, G, E / G)
        rating = by_group.topk(self.group_best, dim=-1).values.sum(-1)
        out = torch.ones_like(rating, dtype=torch.bool)
        out.scatter_(1, rating.topk(c.top_groups, dim=-1, sorted=False).indices, False)
        return by_group.masked_fill(out[..., None], -torch.inf).flatten(1)

    @torch.no_grad()
    def rebalance(self, counts: Tensor) -> None:
        """Moves the bias by what an update's tokens were: `counts` (E,), of all devices. Not when frozen."""
        if self.config.bias_rate and self.weight.requires_grad:
            counts = counts.to(self.e_score_correction_bias)
            step = self.config.bias_rate * torch.sign(counts.mean() - counts)
            self.e_score_correction_bias += step - step.mean()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """The bias stays fp32 whatever type the model is cast to: its steps are too small for bf16."""
        exact = self._buffers.get("e_score_correction_bias")
        super()._apply(fn, recurse)
        if exact is not None and self.e_score_correction_bias.dtype != exact.dtype:
            self.e_score_correction_bias = exact.to(self.e_score_correction_bias.device)
        return self
