"""Dense feed-forward parts. B batch, T tokens, d width, f hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from homespun.config import Config, Count
from homespun.model.auxiliary import Auxiliary
from homespun.model.cost import PartCost, linear
from homespun.model.plain import by_hand

if TYPE_CHECKING:
    from homespun.model.decoder import ModelConfig


class Dense(Config):
    """What every dense kind has in common: no layer is impossible."""

    def check(self, model: ModelConfig) -> None:
        """Nothing can be wrong with it."""


class SwiGLU(Dense):
    """down(silu(gate x) * up x) (Shazeer, 2020).

    `hidden`: none means 8/3 of the width, rounded up to a multiple of 64.
    """

    kind: Literal["swiglu"] = "swiglu"
    hidden: Count | None = None
    bias: bool = False

    def size(self, width: int) -> int:
        """The hidden width."""
        return self.hidden or -(-8 * width // (3 * 64)) * 64

    def build(self, model: ModelConfig, layer: int) -> nn.Module:
        """The module of one layer."""
        return SwiGLUFeedForward(model.width, self.size(model.width), self.bias)

    def cost(self, model: ModelConfig, layer: int) -> PartCost:
        """What one layer costs."""
        d, f = model.width, self.size(model.width)
        kept = PartCost(activations=4 * f)  # gate, silu(gate), up, and their product
        return linear(d, f, self.bias) * 2 + linear(f, d, self.bias) + kept


class GELU(Dense):
    """down(gelu(up x)) (Hendrycks and Gimpel, 2016).

    `hidden`: none means 4 x width. `approximate`: GPT-2's tanh form.
    """

    kind: Literal["gelu"] = "gelu"
    hidden: Count | None = None
    bias: bool = False
    approximate: Literal["none", "tanh"] = "none"

    def size(self, width: int) -> int:
        """The hidden width."""
        return self.hidden or 4 * width

    def build(self, model: ModelConfig, layer: int) -> nn.Module:
        """The module of one layer."""
        return GELUFeedForward(model.width, self.size(model.width), self.bias, self.approximate)

    def cost(self, model: ModelConfig, layer: int) -> PartCost:
        """What one layer costs."""
        return _two_matrices(model.width, self.size(model.width), self.bias)


class ReLU2(Dense):
    """down(relu(up x)^2) (So et al., 2021). `hidden`: none means 4 x width."""

    kind: Literal["relu2"] = "relu2"
    hidden: Count | None = None
    bias: bool = False

    def size(self, width: int) -> int:
        """The hidden width."""
        return self.hidden or 4 * width

    def build(self, model: ModelConfig, layer: int) -> nn.Module:
        """The module of one layer."""
        return ReLU2FeedForward(model.width, self.size(model.width), self.bias)

    def cost(self, model: ModelConfig, layer: int) -> PartCost:
        """What one layer costs."""
        return _two_matrices(model.width, self.size(model.width), self.bias)


class DenseFeedForward(nn.Module):
    """What every dense part has in common: there are no experts to balance."""

    def rebalance(self, counts: Tensor) -> None:
        """Nothing to do."""


class SwiGLUFeedForward(DenseFeedForward):
    """(B, T, d) -> (B, T, d)"""

    def __init__(self, width: int, hidden: int, bias: bool):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=bias)
        self.up_proj = nn.Linear(width, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Auxiliary]:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)), Auxiliary()


class GELUFeedForward(DenseFeedForward):
    """(B, T, d) -> (B, T, d)"""

    def __init__(self, width: int, hidden: int, bias: bool, approximate: str):
        super().__init__()
        self.up_proj = nn.Linear(width, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, width, bias=bias)
        self.approximate = approximate

    def forward(self, x: Tensor) -> tuple[Tensor, Auxiliary]:
        return self.down_proj(F.gelu(self.up_proj(x), approximate=self.approximate)), Auxiliary()


class ReLU2FeedForward(DenseFeedForward):
    """(B, T, d) -> (B, T, d)"""

    def __init__(self, width: int, hidden: int, bias: bool):
        super().__init__()
        self.up_proj = nn.Linear(width, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Auxiliary]:
        return self.down_proj(squared_relu(self.up_proj(x))), Auxiliary()


def squared_relu(u: Tensor) -> Tensor:
    """max(u, 0)^2"""
    if by_hand(u):
        return _TrainedSquaredReLU.apply(u)
    return F.relu(u).square()


class _TrainedSquaredReLU(torch.autograd.Function):
    """y = r^2 with r = max(u, 0), for training without a compiler: its gradient, 2 r dy, needs no mask."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        r = F.relu(u)
        ctx.save_for_backward(r)
        return r.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> Tensor:
        (r,) = ctx.saved_tensors
        return torch.mul(d_y, r).mul_(2)


def _two_matrices(width: int, hidden: int, bias: bool) -> PartCost:
    return linear(width, hidden, bias) + linear(hidden, width, bias) + PartCost(activations=2 * hidden)
