"""Normalisations. B batch, T tokens, d width."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from homespun.config import Config


class RMSNorm(Config):
    """Divide by the root mean square, times a learned weight (Zhang and Sennrich, 2019)."""

    kind: Literal["rms"] = "rms"
    eps: Annotated[float, Field(gt=0, le=1e-2)] = 1e-6

    def build(self, width: int) -> nn.Module:
        """A module (..., width) -> (..., width)."""
        return RootMeanSquare(width, self.eps)

    def parameters(self, width: int) -> int:
        """How many numbers it learns."""
        return width


class LayerNorm(Config):
    """Subtract the mean, divide by the deviation, times a weight, plus a bias (Ba et al., 2016)."""

    kind: Literal["layer"] = "layer"
    eps: Annotated[float, Field(gt=0, le=1e-2)] = 1e-5
    bias: bool = True

    def build(self, width: int) -> nn.Module:
        """A module (..., width) -> (..., width)."""
        return nn.LayerNorm(width, eps=self.eps, bias=self.bias)

    def parameters(self, width: int) -> int:
        """How many numbers it learns."""
        return width * (2 if self.bias else 1)


Norm = Annotated[RMSNorm | LayerNorm, Field(discriminator="kind")]


class RootMeanSquare(nn.Module):
    """RMSNorm as Llama computes it: in fp32, rounded to the input's type, and only then times the weight."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (..., d) -> (..., d)
        if x.dtype == torch.float32:  # the fused kernel gives the same bits here; in bf16 it rounds elsewhere
            return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
        h = x.float()
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * h.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"
